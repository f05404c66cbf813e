"""Rows leave a batch in place, or get weights, and are put back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from torch import Tensor

from ippo.callbacks.influence.batch_rows import Leaf, RowReader, require_rows
from ippo.errors import UsageError, require

Undo = Callable[[], None]
"""Puts back what a change in place took away."""

Select = Callable[[Any, Tensor], Any]
"""``select(batch, kept)`` drops the rows of a batch in place where ``kept`` ([n] bool) is False. It may return an
:data:`Undo`, which a batch needs that is used again."""


def drop_rows(batch: Any, kept: Tensor, reader: RowReader | None = None) -> Undo:
    """Let the rows where ``kept`` ([n] bool) is False leave the batch, whatever it is made of.

    The containers stay, and so does each tensor, with fewer rows: whoever holds the batch sees the change. The function
    that is returned gives everything back, for batches that are used again (a data set kept in memory, an overfitted
    batch).

    Raises:
        UsageError: if its rows cannot be known, or stand in a tuple of a tuple, which cannot be changed.

    Example:
        >>> import torch
        >>> batch = [torch.tensor([1.0, 2.0, 3.0]), ("a", "b", "c")]
        >>> undo = drop_rows(batch, torch.tensor([True, False, True]))
        >>> batch
        [tensor([1., 3.]), ('a', 'c')]
        >>> undo()
        >>> batch
        [tensor([1., 2., 3.]), ('a', 'b', 'c')]
    """
    reader = reader if reader is not None else RowReader()
    require_rows(batch, len(kept), reader)
    leaves = {  # a tensor or a list that stands in two places is one
        leaf.place if isinstance(leaf.value, tuple) else id(leaf.value): leaf
        for leaf in reader.leaves(batch, len(kept), strict=True)
    }
    places = kept.nonzero().flatten().tolist()
    undone = [_drop(leaf, kept, places) for leaf in leaves.values()]
    return lambda: [undo() for undo in undone].clear()


def pick_rows(batch: Any, kept: Tensor, path: str = "batch") -> Any:
    """A copy of a batch with the rows where ``kept`` ([n] bool) is True; what has no entry a row stays as it is.

    Raises:
        UsageError: if its rows cannot be known.

    Example:
        >>> import torch
        >>> pick_rows({"x": torch.tensor([1.0, 2.0]), "more": {"text": ["a", "b"]}}, torch.tensor([False, True]))
        {'x': tensor([2.]), 'more': {'text': ['b']}}
    """
    if isinstance(batch, Tensor):
        return batch[kept.to(batch.device)] if batch.dim() else batch
    if isinstance(batch, Mapping):
        return {key: pick_rows(value, kept, f"{path}[{key!r}]") for key, value in batch.items()}
    if not isinstance(batch, list | tuple):
        return batch
    kind = RowReader().reading(batch, len(kept), path, strict=True)
    if kind == "rows":
        return [one for one, stays in zip(batch, kept.tolist(), strict=True) if stays]
    if kind == "neither":
        return batch
    columns = [pick_rows(one, kept, f"{path}[{place}]") for place, one in enumerate(batch)]
    return (
        columns if isinstance(batch, list) else type(batch)(*columns) if hasattr(batch, "_fields") else tuple(columns)
    )


def set_weight(batch: Any, weights: Tensor) -> Undo:
    """Give a batch an entry ``weight``, [n], or a new value for the one it has. Returns what takes it back.

    Raises:
        UsageError: if the batch has no room for one.
    """
    if isinstance(batch, MutableMapping):
        had, before = "weight" in batch, batch.get("weight")
        batch["weight"] = weights
        return lambda: batch.__setitem__("weight", before) if had else batch.__delitem__("weight")
    if hasattr(batch, "weight") and not isinstance(batch, tuple):
        before = batch.weight
        object.__setattr__(batch, "weight", weights)
        return lambda: object.__setattr__(batch, "weight", before)
    remedy = f"a {type(batch).__name__} has no place for it: use a dict, or an object with an attribute weight"
    raise UsageError("action", "weight", remedy)


def checked_weights(weights: Any, rows: int, place: str) -> Tensor:
    """[n] weights that stand where a filter sets its own, which multiply with them.

    Raises:
        UsageError: if they are none.
    """
    usable = isinstance(weights, Tensor) and weights.shape == (rows,) and bool((weights >= 0).all())
    found = f"of shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else f"a {type(weights).__name__}"
    require(usable, place, found, f"a filter sets the rows' weights there: give {rows} numbers >= 0, or another name")
    return weights


def _drop(leaf: Leaf, kept: Tensor, places: list[int]) -> Undo:
    """Other content, of another length, for the very same tensor or list, or another tuple in the same place."""
    value = leaf.value
    if isinstance(value, Tensor):
        whole, value.data = value.data, value.data[kept.to(value.device)]
        return lambda: setattr(value, "data", whole)
    fewer = [value[place] for place in places]
    if isinstance(value, tuple):
        assert leaf.put is not None
        leaf.put(tuple(fewer))
        return lambda: leaf.put(value)  # type: ignore[misc]
    entries = list(value)
    value[:] = fewer
    return lambda: value.__setitem__(slice(None), entries)
