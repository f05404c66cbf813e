"""The rows of any batch: find them, count them, and let some of them leave in place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ippo.errors import UsageError, require

Undo = Callable[[], None]
"""Puts back what a change in place took away."""

Select = Callable[[Any, Tensor], Any]
"""``select(batch, kept)`` drops the rows of a batch in place where ``kept`` ([n] bool) is False. It may return an
:data:`Undo`, which a batch needs that is used again."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A part of a batch with one entry a row.

    Args:
        place: where it stands, for messages.
        value: the part itself.
        put: puts another in its place; None where it stands in a tuple.
    """

    place: str
    value: Any
    put: Callable[[Any], Any] | None = None


class RowReader:
    """Finds the rows of batches. Walks mappings, tuples, lists and dataclasses.

    Tensors with at least one axis are rows along the first. A list or tuple of anything but tensors and containers
    (texts, ids) holds rows if it is as long as there are rows. One of tensors or containers is read as columns, each of
    all rows, or as one entry a row, whichever fits: only where both fit, as for two tensors alike and two rows, nobody
    can know; then it is read as in earlier batches. Single numbers and texts belong to no row.
    """

    def __init__(self) -> None:
        self._known: dict[str, Literal["columns", "rows"]] = {}

    def leaves(
        self, batch: Any, rows: int, path: str = "batch", like: str = "", strict: bool = False
    ) -> Iterator[Leaf]:
        """Everything in a batch that has one entry a row.

        Args:
            batch: anything.
            rows: how many it has.
            path: its name, for messages.
            like: what the number of rows was taken from, for messages.
            strict: refuse what can be read in two ways.

        Raises:
            UsageError: if a part is of a type whose rows nobody can know, or does not have so many.
        """
        yield from self._walk(Leaf("batch", batch), rows, like, strict)

    def _walk(self, leaf: Leaf, rows: int, like: str, strict: bool) -> Iterator[Leaf]:
        batch, path = leaf.value, leaf.place
        if isinstance(batch, Tensor):
            if batch.dim():
                require(batch.layout == torch.strided, path, f"a {batch.layout} tensor", _REMEDY)
                found = f"{len(batch)} rows, where {like or 'the batch'} has {rows}"
                remedy = "give every tensor of a batch one entry a row along its first axis, or pass select="
                require(len(batch) == rows, path, found, remedy)
                yield leaf
            return
        if isinstance(batch, list | tuple):
            require(not isinstance(batch, PackedSequence), path, "a PackedSequence", _REMEDY)
            kind = self.reading(batch, rows, path, strict)
            if kind == "rows":
                yield leaf
            if kind != "columns":
                return
        for part in parts(leaf):
            yield from self._walk(part, rows, like, strict)

    def reading(self, batch: Any, rows: int, path: str, strict: bool) -> Literal["columns", "rows", "neither"]:
        """How a list or tuple is to be read.

        Raises:
            UsageError: if that cannot be known and is asked for.
        """
        if not any(_holds_rows(value) for value in batch):
            return "rows" if len(batch) == rows else "neither"
        as_rows, as_columns = len(batch) == rows and _alike(batch), _fit_inside(batch, rows)
        if as_rows and as_columns and rows > 1:
            found = f"{rows} entries of {rows} rows each"
            remedy = "rows or columns? Stack it, take another batch size, or pass select="
            require(not strict or path in self._known, path, found, remedy)
            return self._known.get(path, "columns")
        kind: Literal["columns", "rows"] = "rows" if as_rows and not as_columns else "columns"
        if rows > 1:
            self._known[path] = kind
        return kind


def parts(leaf: Leaf) -> Iterator[Leaf]:
    """What a container holds, with its place.

    Raises:
        UsageError: if it is none, and no plain value either.
    """
    batch, path = leaf.value, leaf.place
    if isinstance(batch, Mapping):
        for key, value in batch.items():
            put = _setter(batch.__setitem__, key) if isinstance(batch, MutableMapping) else None
            yield Leaf(f"{path}[{key!r}]", value, put)
    elif dataclasses.is_dataclass(batch):
        for field in dataclasses.fields(batch):
            put = _setter(lambda name, value: object.__setattr__(batch, name, value), field.name)
            yield Leaf(f"{path}.{field.name}", getattr(batch, field.name), put)
    elif isinstance(batch, list | tuple):
        for place, value in enumerate(batch):
            put = _setter(batch.__setitem__, place) if isinstance(batch, list) else None
            yield Leaf(f"{path}[{place}]", value, put)
    else:
        require(isinstance(batch, _PLAIN), path, f"a {type(batch).__name__}", _REMEDY)


def count_rows(batch: Any) -> int:
    """How many rows a batch has: the first axis that all its tensors share.

    Raises:
        UsageError: if its tensors disagree, or it holds none.

    Example:
        >>> count_rows((torch.zeros(2, 3), torch.tensor([0, 1])))
        2
    """
    first = _first_tensor(Leaf("batch", batch))
    if first is None:
        if not isinstance(batch, Tensor):
            list(parts(Leaf("batch", batch)))  # a type of its own is told by name
        raise UsageError("batch", f"a {type(batch).__name__} without a tensor", _REMEDY)
    rows = len(first.value)
    for _ in RowReader().leaves(batch, rows, like=first.place):
        pass
    return rows


def require_rows(batch: Any, losses: int, reader: RowReader, leave: bool = True) -> None:
    """See that a batch has a row for each loss, and that rows can leave it.

    Raises:
        UsageError: if it has not, or they cannot.
    """
    try:
        for leaf in reader.leaves(batch, losses):
            fixed = leave and leaf.put is None and isinstance(leaf.value, tuple)
            remedy = "what stands in a tuple cannot leave in place: let collate_fn return lists, or a dict"
            require(not fixed, leaf.place, "a tuple of rows in a tuple", remedy)
    except UsageError:
        rows = count_rows(batch)  # names the place where its parts do not agree among themselves
        found = f"{losses} losses for a batch of {rows} rows"
        require(rows == losses, "losses", found, "return one loss for each row, [n]")
        raise


def drop_rows(batch: Any, kept: Tensor, reader: RowReader | None = None) -> Undo:
    """Let the rows where ``kept`` ([n] bool) is False leave the batch, whatever it is made of.

    The containers stay, and so does each tensor, with fewer rows: whoever holds the batch sees the change. The function
    that is returned gives everything back, for batches that are used again (a data set kept in memory, an overfitted
    batch).

    Raises:
        UsageError: if its rows cannot be known, or stand in a tuple of a tuple, which cannot be changed.

    Example:
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


def column(batch: Any, name: str) -> Any:
    """The batch's entry or attribute of that name, None where it has none."""
    return batch.get(name) if isinstance(batch, Mapping) else getattr(batch, name, None)


_PLAIN = (int, float, complex, str, bytes, type(None))
_REMEDY = "its rows are not known: pass select=, a function of the batch and [n] bools that drops rows in place"


def _holds_rows(value: Any) -> bool:
    return isinstance(value, Tensor | Mapping | list | tuple) or dataclasses.is_dataclass(value)


def _alike(values: Sequence[Any]) -> bool:
    """Whether all could be rows of one kind."""
    return len({_kind(value) for value in values}) == 1


def _kind(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return value.dtype, value.dim()
    if isinstance(value, Mapping):
        return frozenset(value)
    if isinstance(value, list | tuple):
        return type(value), frozenset(map(_kind, value))
    return str(type(value))


def _fit(value: Any, rows: int) -> bool:
    """Whether a part can be read as one of so many rows, and says anything of rows at all."""
    if isinstance(value, Tensor):
        return value.dim() > 0 and len(value) == rows
    if not _holds_rows(value):
        return False
    if isinstance(value, list | tuple) and len(value) == rows and _alike(value):
        return True
    return _fit_inside(value, rows)


def _fit_inside(value: Any, rows: int) -> bool:
    inside = (part.value for part in parts(Leaf("", value)))
    telling = [part for part in inside if _holds_rows(part) and not (isinstance(part, Tensor) and part.dim() == 0)]
    return bool(telling) and all(_fit(part, rows) for part in telling)


def _first_tensor(leaf: Leaf) -> Leaf | None:
    """The first tensor with rows: one of the container's own before those further inside."""
    if isinstance(leaf.value, Tensor):
        return leaf if leaf.value.dim() else None
    if not _holds_rows(leaf.value):
        return None
    inside = list(parts(leaf))
    nearest = sorted(inside, key=lambda part: not isinstance(part.value, Tensor))
    return next((first for part in nearest if (first := _first_tensor(part)) is not None), None)


def _setter(put: Callable[[Any, Any], Any], key: Any) -> Callable[[Any], Any]:
    return lambda value: put(key, value)


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
