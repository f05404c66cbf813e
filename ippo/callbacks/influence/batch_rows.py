"""The rows of any batch: find them, and count them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ippo.errors import UsageError, require


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
