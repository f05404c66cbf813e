"""Influence over a step that is really taken: what some training on the gold examples does to each episode's loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ippo.errors import require
from ippo.influence.direction import Buffer, Direction, Losses, resolve
from ippo.influence.directions import leaves_one_out
from ippo.influence.inputs import check_losses
from ippo.influence.parameters import Subset, require_whole, scored, trainable
from ippo.influence.precision import WatchPrecision, half_of, require_full_precision
from ippo.influence.scorer import Scorer


class LookaheadScorer(Scorer):
    """score_i = loss_i at the parameters p, less loss_i at p', which a few steps of Adam along the direction lead to.

    A dot product of gradients is the jvp of that difference at p, and so the limit of small steps. It is blind to
    curvature: a token that the policy finds unlikely loses far more log-probability over a step than its jvp says,
    and such a token is often the mistake. The difference needs no gradient of an episode: it costs the steps and one
    forward pass.

    Where the filter scores in PPO's own pass, the difference is one of log-probabilities, and the loss enters through
    its derivative by them at p: of an episode with the advantages A, the sum over its tokens of A (log p' - log p).

    Args:
        steps: of Adam, each along the direction anew; its averages start empty.
        learning_rate: of these steps. None takes the policy's own, as high as it has been.
        parameters: those that move and count, as in :class:`ExactScorer`.

    Example:
        >>> module = nn.Linear(1, 1, bias=False)
        >>> squares = lambda module, x: (module(x) ** 2 / 2).flatten()  # loss of a row: weight ** 2 * x ** 2 / 2
        >>> _ = nn.init.constant_(module.weight, 3.0)
        >>> scorer = LookaheadScorer(steps=1, learning_rate=1.0)  # Adam's first step is the rate: 3 becomes 2
        >>> scorer.score(module, squares, [torch.tensor([[1.0], [2.0]])], {"weight": torch.ones(1, 1)})  # 5 x**2 / 2
        tensor([ 2.5000, 10.0000])
    """

    gives_jvps = True

    def __init__(self, steps: int = 4, learning_rate: float | None = None, parameters: Subset = None) -> None:
        require(steps >= 1, "steps", steps, "use a whole number of at least 1")
        positive = learning_rate is None or 0.0 < learning_rate < float("inf")
        require(positive, "learning_rate", learning_rate, "use a number above 0, or null for the policy's own")
        self.steps, self.learning_rate, self.parameters = steps, learning_rate, parameters
        self._peak = 0.0  # the highest rate that was observed

    def observe(self, module: nn.Module, learning_rate: float) -> None:
        """Remember how high the policy's rate has been: under a falling schedule the steps stay as large."""
        self._peak = max(self._peak, learning_rate)

    def check(self, module: nn.Module) -> None:
        require_whole(module, "scorer", "LookaheadScorer")
        require_full_precision(half_of(module), "scorer", "LookaheadScorer")

    def score(
        self, module: nn.Module, losses: Losses, batches: Iterable[Any], direction: Direction | Mapping[str, Tensor]
    ) -> Tensor:
        """See :meth:`Scorer.score`."""
        before, after = self._both(module, losses, batches, direction)
        if not before:
            return torch.empty(0)
        difference = torch.cat(before) - torch.cat(after)
        check_losses(difference, depends=True)
        return difference

    def derivatives(
        self, module: nn.Module, function: Losses, batches: Iterable[Any], direction: Direction | Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Scorer.derivatives`; a jvp is what the value is less after the steps."""
        before, after = self._both(module, function, batches, direction)
        if not before:
            return torch.empty(0, 0), torch.empty(0, 0)
        shape = f"a result of shape {tuple(before[0].shape)}"
        require(before[0].dim() == 2, "function", shape, "return one number a token, [n, t]")
        present, moved = (pad_sequence([row for part in parts for row in part], True) for parts in (before, after))
        return present, present - moved

    def state_dict(self) -> dict[str, Any]:
        return {"peak": self._peak}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._peak = state["peak"]

    def _both(
        self, module: nn.Module, function: Losses, batches: Iterable[Any], direction: Direction | Mapping[str, Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What the function gives for each batch before the steps, and after them."""
        once = isinstance(batches, Iterator)
        require(not once, "batches", type(batches).__name__, "they are read before and after the steps: pass a list")
        left_out = leaves_one_out(direction)
        require(not left_out, "direction", "BufferDirection(leave_one_out=True)", "it has no steps of its own")
        self.check(module)
        precision = WatchPrecision()
        with scored(module, self.parameters), torch.no_grad():
            with precision:
                before = [function(module, batch).float() for batch in batches]
            require_full_precision(precision.half, "scorer", "LookaheadScorer")
            with self._moved(module, direction, Buffer(lambda *args: _by_row(function(*args)), batches)):
                after = [function(module, batch).float() for batch in batches]
        return before, after

    @contextmanager
    def _moved(self, module: nn.Module, direction: Direction | Mapping[str, Tensor], buffer: Buffer) -> Iterator[None]:
        """The module after the steps; afterwards as it was, in the very same tensors."""
        rate = self.learning_rate if self.learning_rate is not None else self._peak
        require(rate > 0, "learning_rate", self.learning_rate, "name one: no training has said how large its steps are")
        parameters = trainable(module)
        held = {name: parameter.data for name, parameter in parameters.items()}
        moving = {name: tensor.clone() for name, tensor in held.items()}
        optimizer = torch.optim.Adam(moving.values(), lr=rate)
        try:
            for name, parameter in parameters.items():
                parameter.data = moving[name]  # one storage: a step on the one is seen by the module
            losses = []  # of a direction that has one, step by step
            for _ in range(self.steps):
                for name, gradient in resolve(direction, module, buffer).items():
                    moving[name].grad = gradient
                losses.append(getattr(direction, "mean_loss", None))
                optimizer.step()
            if isinstance(direction, Direction):
                direction.mean_loss = losses[0]  # what is told of it is what holds now, not on the way
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = held[name]


def _by_row(values: Tensor) -> Tensor:
    """[n] losses, of what may be [n, t] parts of them."""
    return values.flatten(1).sum(1) if values.dim() > 1 else values
