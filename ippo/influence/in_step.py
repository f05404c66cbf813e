"""As many micro-batches on every rank, where ranks hold parts of the module and wait for one another in each pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from ippo.distributed import extremes
from ippo.errors import require
from ippo.influence.parameters import spread, trainable

T = TypeVar("T")


@dataclass(frozen=True)
class Filling:
    """A micro-batch that only keeps a rank in step with the others: it runs, and its rows count for nothing.

    Args:
        batch: any that the losses take.
    """

    batch: Any


def run_in_step(module: nn.Module, batches: Iterable[Any], run: Callable[[Any], T]) -> list[T]:
    """What ``run`` gives for each micro-batch whose rows count, see :func:`in_step`."""
    found = [(run(batch), counts) for batch, counts in in_step(module, batches)]
    return [one for one, counts in found if counts]


def in_step(module: nn.Module, batches: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    """The micro-batches, each with whether its rows count. Where ranks hold parts of the module, a rank with fewer
    repeats its last one as a :class:`Filling`, until all have run as many.

    Raises:
        UsageError: if ranks hold parts of the module and one of them, but not all, has none: on every rank.
    """
    if not spread(module):
        yield from ((batch, True) for batch in batches)
        return
    batches = list(batches)
    least, most = extremes(len(batches), next(iter(trainable(module).values())).device)
    remedy = "ranks that hold parts of a model run together: give each at least one row, such as a gold row a rank"
    require(least > 0 or most == 0, "batches", "none on one of the ranks", remedy)
    for batch in [*batches, *[Filling(batches[-1])] * (most - len(batches))] if batches else []:
        counts = not isinstance(batch, Filling)
        while isinstance(batch, Filling):
            batch = batch.batch
        yield batch, counts
