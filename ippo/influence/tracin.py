"""Influence along the path of training: exact scores at recent snapshots of the parameters, added up."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ippo.distributed import for_checkpoint, placed_like
from ippo.errors import require
from ippo.influence.direction import Direction, Losses
from ippo.influence.exact import Backend, ExactScorer
from ippo.influence.parameters import Subset, trainable
from ippo.influence.scorer import Scorer
from ippo.influence.sharding import is_spread


class TracInScorer(Scorer):
    """score_i = sum over snapshots c of rate_c * <gradient of loss_i at c, direction at c> (arXiv 2002.08484, eq. 1).

    ``observe`` takes a snapshot of the trainable parameters; the filter callback calls it before each scoring. The
    sum runs over the newest few; before any was taken, over the present parameters alone at rate 1. A direction that
    can be computed is computed anew at every snapshot; a fixed one is used at all of them. A clipped PPO loss is taken
    as it stands: at an older snapshot its ratio is not 1.

    Args:
        snapshots: how many are kept.
        device: where they are kept, e.g. ``"cpu"``; None for the parameters' own.
        backend, parameters: as in :class:`ExactScorer`; the last-layers variant is ``parameters=k``.

    Example:
        >>> module = nn.Linear(1, 1, bias=False)
        >>> squares = lambda module, x: (module(x) ** 2 / 2).flatten()  # gradient of a row: weight * x ** 2
        >>> scorer = TracInScorer(snapshots=2)
        >>> for weight in (1.0, 2.0, 3.0):  # the first is forgotten
        ...     _ = nn.init.constant_(module.weight, weight)
        ...     scorer.observe(module, learning_rate=0.1)
        >>> scorer.score(module, squares, [torch.tensor([[2.0]])], {"weight": torch.ones(1, 1)})  # 0.1 * (8 + 12)
        tensor([2.])
    """

    def __init__(
        self, snapshots: int = 3, device: str | None = None, backend: Backend = "auto", parameters: Subset = None
    ) -> None:
        require(snapshots >= 1, "snapshots", snapshots, "use a whole number of at least 1")
        self.exact, self.device, self.parameters = ExactScorer(backend, parameters), device, parameters
        self.path: deque[tuple[float, dict[str, Tensor]]] = deque(maxlen=snapshots)

    @property
    def choice(self) -> str:  # type: ignore[override]
        return self.exact.choice

    def check(self, module: nn.Module) -> None:
        self.exact.check(module)

    def observe(self, module: nn.Module, learning_rate: float) -> None:
        """Remember the trainable parameters as they are, and the rate of the step that follows."""
        copies = {
            name: parameter.detach().to(self.device or parameter.device, copy=True)
            for name, parameter in trainable(module).items()
        }
        self.path.append((learning_rate, copies))

    def score(
        self, module: nn.Module, losses: Losses, batches: Iterable[Any], direction: Direction | Mapping[str, Tensor]
    ) -> Tensor:
        """See :meth:`Scorer.score`."""
        require(
            not (isinstance(batches, Iterator) and len(self.path) > 1),
            "batches",
            type(batches).__name__,
            "they are read once a snapshot: pass a list",
        )
        if not self.path:
            return self.exact.score(module, losses, batches, direction)
        scores = []
        for rate, parameters in self.path:
            with _at(module, parameters):
                scores.append(rate * self.exact.score(module, losses, batches, direction))
        return torch.stack(scores).sum(0)

    def state_dict(self) -> dict[str, Any]:
        return {
            "path": [
                {"rate": rate, "parameters": {name: for_checkpoint(one) for name, one in parameters.items()}}
                for rate, parameters in self.path
            ]
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.path.clear()
        self.path.extend((one["rate"], one["parameters"]) for one in state["path"])


@contextmanager
def _at(module: nn.Module, parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """The module with its trainable parameters as they were; afterwards as they are, in the very same tensors. FSDP2
    reads the storage of its shards, so that they are written over rather than swapped."""
    present = trainable(module)
    fits = parameters.keys() == present.keys()
    require(fits, "snapshot", "of other parameters", "score the module that was observed, with the same ones trainable")
    if is_spread(present):
        with torch.no_grad():
            held = {name: parameter.clone() for name, parameter in present.items()}
            try:
                for name, parameter in present.items():
                    parameter.copy_(placed_like(parameters[name], parameter))
                yield
            finally:
                for name, parameter in present.items():
                    parameter.copy_(held[name])
        return
    storage = {name: parameter.data for name, parameter in present.items()}
    try:
        for name, parameter in present.items():
            parameter.data = parameters[name].to(parameter.device)
        yield
    finally:
        for name, parameter in present.items():
            parameter.data = storage[name]
