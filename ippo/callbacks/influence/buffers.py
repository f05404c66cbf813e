"""What a rollout buffer may be, anything with ``select`` and ``reweight`` or a dict, and what a selection does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ippo.callbacks.influence.batch_changes import checked_weights, pick_rows
from ippo.callbacks.influence.batch_rows import count_rows
from ippo.errors import require
from ippo.influence import Selection
from ippo.rollout.episodes import Episodes


class Buffer(Protocol):
    """Episodes of an existing project. :class:`ippo.Episodes` is one; ``chunks(size)``, where a buffer has it, gives
    the parts that are scored at a time, and ``weights`` ([n]) is what the filters before have set."""

    def select(self, mask: Tensor) -> Any:
        """The episodes where ``mask`` ([n] bool) is True, as a new buffer."""

    def reweight(self, weights: Tensor) -> Any:
        """The same episodes with [n] loss weights of mean 1 over those that stay, as a new buffer."""


@dataclass(frozen=True)
class DictBuffer:
    """A dict of tensors and lists, one entry an episode, that can be filtered; the weights go to ``"weight"``.

    Args:
        columns: the dict.

    Example:
        >>> buffer = DictBuffer({"reward": torch.tensor([1.0, 0.0]), "text": ["a", "b"]})
        >>> buffer.reweight(torch.tensor([1.0, 0.0])).select(torch.tensor([True, False])).columns
        {'reward': tensor([1.]), 'text': ['a'], 'weight': tensor([1.])}
    """

    columns: Mapping[str, Any]

    def __len__(self) -> int:
        return count_rows(self.columns)

    def select(self, mask: Tensor) -> DictBuffer:
        """See :class:`Buffer`; what has no entry an episode stays as it is."""
        return DictBuffer(pick_rows(self.columns, mask, "episodes"))

    def reweight(self, weights: Tensor) -> DictBuffer:
        """See :class:`Buffer`."""
        return DictBuffer({**self.columns, "weight": weights})

    def chunks(self, size: int) -> list[Mapping[str, Any]]:
        """Parts of at most ``size`` episodes."""
        starts = torch.arange(len(self)) // size
        return [self.select(starts == part).columns for part in range(int(starts.max()) + 1)] if len(self) else []


def as_buffer(episodes: Any) -> Buffer:
    """What was emitted, as something that can be filtered.

    Raises:
        UsageError: if it cannot be.
    """
    if isinstance(episodes, Mapping):
        return DictBuffer(episodes)
    usable = hasattr(episodes, "select") and hasattr(episodes, "reweight")
    remedy = "emit a dict of tensors, or an object with select(mask) and reweight(weights) that return a new one"
    require(usable, "episodes", f"a {type(episodes).__name__}", remedy)
    return episodes


def applied(buffer: Any, selection: Selection, own: slice, weigh: bool) -> Any:
    """The buffer without what goes, weighed as was decided.

    Args:
        buffer: of this rank.
        selection: on the episodes of all ranks.
        own: where this rank's are among them.
        weigh: leave all in place and only set weights. PPO takes the mean over those whose weight is above zero; who
            else reads them takes it over all, for which they are 1 on the mean.
    """
    mine = selection.part(own)
    if isinstance(buffer, Episodes):
        buffer = buffer.reweight(mine.weights)
        return buffer if weigh else buffer.select(mine.kept, mine.reasons)
    if weigh:
        return buffer.reweight(selection.weights_over_all[own])
    return buffer.reweight(mine.weights).select(mine.kept)


def weights_of(buffer: Any, rows: int, needed: bool = False) -> Tensor | None:
    """[n] the weights that episodes come with; None where they have none.

    Args:
        buffer: of this rank.
        rows: how many episodes it has.
        needed: an earlier filter has set some.

    Raises:
        UsageError: if they cannot be read, or what stands in their place are no weights.
    """
    if isinstance(buffer, DictBuffer):
        found, place = buffer.columns.get("weight"), "episodes['weight']"
    else:
        found, place = getattr(buffer, "weights", None), "episodes.weights"
    remedy = "the weights of two filters multiply: give it an attribute weights, what reweight has set"
    require(found is not None or not needed, "episodes", f"a {type(buffer).__name__}", remedy)
    return None if found is None else checked_weights(found, rows, place)
