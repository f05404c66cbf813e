"""What every scorer promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ippo.influence.direction import Direction, Losses
from ippo.influence.parameters import Subset


class Scorer(ABC):
    """Anything that scores: one number an episode, positive where a step on it helps.

    Attributes:
        gives_jvps: whether it has :meth:`derivatives`, from which scores follow by the chain rule.
        forward_mode: whether these come from a pass in forward mode, which rounds otherwise than a plain one.
        parameters: which parameters count, see :data:`ippo.influence.parameters.Subset`; None for all.
        choice: after scoring, which way was taken and why, in one sentence; empty where there is only one.
    """

    gives_jvps = False
    forward_mode = False
    parameters: Subset = None
    choice: str = ""

    def check(self, module: nn.Module) -> None:  # noqa: B027
        """Refuse a module that it cannot score, as far as that can be told before there is data.

        Raises:
            UsageError: with the remedy.
        """

    @abstractmethod
    def score(
        self, module: nn.Module, losses: Losses, batches: Iterable[Any], direction: Direction | Mapping[str, Tensor]
    ) -> Tensor:
        """One score an episode, in the order of the batches.

        Args:
            module: its trainable parameters are scored.
            losses: ``losses(module, batch) -> [n_batch]``, one differentiable loss an episode.
            batches: micro-batches, any structure that ``losses`` understands.
            direction: the gradient of the reference loss, or anything with ``compute(module)`` that gives it.

        Returns:
            [n] float32.

        Raises:
            UsageError: if the direction does not fit the module, or ``losses`` does not give one finite number an
                episode.
        """

    def derivatives(
        self, module: nn.Module, function: Losses, batches: Iterable[Any], direction: Direction | Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Values a token, and their jvps along the direction.

        Args:
            module, batches, direction: as in :meth:`score`.
            function: ``function(module, batch) -> [n, t]``, e.g. log-probabilities.

        Returns:
            Two [n, t] float32; t is the longest of all batches, padded with 0.
        """
        raise NotImplementedError(f"{type(self).__name__} gives no jvps")

    def observe(self, module: nn.Module, learning_rate: float) -> None:  # noqa: B027
        """Told once before each scoring; for scorers that remember where the parameters have been."""

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart: tensors and plain numbers only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Take up what :meth:`state_dict` gave."""
