"""The rows of any batch: find them, count them, and let some of them leave in place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from ippo.errors import UsageError, require

Undo = Callable[[], None]
"""Puts back what a change in place took away."""


def leaves(batch: Any, path: str = "batch") -> Iterator[tuple[str, Tensor | list[Any]]]:
    """Everything in a batch that has one entry a row, with its place.

    Walks mappings, tuples, lists and dataclasses. Tensors with at least one axis are rows along the first, and so is a
    list of anything but tensors and containers (texts, ids). Single numbers and texts belong to no row.

    Raises:
        UsageError: if a part is of a type whose rows nobody can know.

    Example:
        >>> [place for place, _ in leaves({"x": torch.zeros(2, 3), "text": ["a", "b"], "scale": 0.5})]
        ["batch['x']", "batch['text']"]
    """
    if isinstance(batch, Tensor):
        if batch.dim() and batch.layout == torch.strided:
            yield path, batch
        else:
            require(not batch.dim(), path, f"a {batch.layout} tensor", _REMEDY)
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from leaves(value, f"{path}[{key!r}]")
    elif dataclasses.is_dataclass(batch):
        for field in dataclasses.fields(batch):
            yield from leaves(getattr(batch, field.name), f"{path}.{field.name}")
    elif isinstance(batch, list) and not any(_holds_rows(value) for value in batch):
        yield path, batch
    elif isinstance(batch, list | tuple):
        for place, value in enumerate(batch):
            yield from leaves(value, f"{path}[{place}]")
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
    sizes = {place: len(leaf) for place, leaf in leaves(batch) if isinstance(leaf, Tensor)}
    require(bool(sizes), "batch", f"a {type(batch).__name__} without a tensor", _REMEDY)
    (first, size), *others = sizes.items()
    for place, other in others:
        found = f"{other} rows, where {first} has {size}"
        require(other == size, place, found, "give every tensor of a batch one entry a row along its first axis")
    return size


def drop_rows(batch: Any, kept: Tensor) -> Undo:
    """Let the rows where ``kept`` ([n] bool) is False leave the batch, whatever it is made of.

    The containers stay, and so does each tensor, with fewer rows: whoever holds the batch sees the change. The function
    that is returned gives everything back, for batches that are used again (a data set kept in memory, an overfitted
    batch).

    Example:
        >>> batch = (torch.tensor([1.0, 2.0, 3.0]), ["a", "b", "c"])
        >>> undo = drop_rows(batch, torch.tensor([True, False, True]))
        >>> batch
        (tensor([1., 3.]), ['a', 'c'])
        >>> undo()
        >>> batch
        (tensor([1., 2., 3.]), ['a', 'b', 'c'])
    """
    places = kept.nonzero().flatten().tolist()
    undone: list[Undo] = []
    for leaf in {id(leaf): leaf for _, leaf in leaves(batch)}.values():  # one tensor may stand in two places
        if isinstance(leaf, Tensor):
            undone.append(_assign(leaf, leaf.data[kept.to(leaf.device)]))
        elif len(leaf) == len(kept):
            whole = list(leaf)
            leaf[:] = [leaf[place] for place in places]
            undone.append(lambda leaf=leaf, whole=whole: leaf.__setitem__(slice(None), whole))  # type: ignore[misc]
    return lambda: [undo() for undo in undone].clear()


def set_weight(batch: Any, weights: Tensor) -> None:
    """Give a batch an entry ``weight``, [n], or a new value for the one it has.

    Raises:
        UsageError: if the batch has no room for one.
    """
    if isinstance(batch, MutableMapping):
        batch["weight"] = weights
    elif dataclasses.is_dataclass(batch) and hasattr(batch, "weight"):
        object.__setattr__(batch, "weight", weights)
    else:
        remedy = f"a {type(batch).__name__} has no place for it: use a dict, or a dataclass with a field weight"
        raise UsageError("action", "weight", remedy)


def column(batch: Any, name: str) -> Any:
    """The batch's entry or attribute of that name, None where it has none."""
    return batch.get(name) if isinstance(batch, Mapping) else getattr(batch, name, None)


_PLAIN = (int, float, complex, str, bytes, type(None))
_REMEDY = "its rows are not known: pass select=, a function of the batch and [n] bools that drops rows in place"


def _holds_rows(value: Any) -> bool:
    return isinstance(value, Tensor | Mapping | list | tuple) or dataclasses.is_dataclass(value)


def _assign(tensor: Tensor, values: Tensor) -> Undo:
    """Other content, of another length, for the very same tensor."""
    whole, tensor.data = tensor.data, values
    return lambda: setattr(tensor, "data", whole)
