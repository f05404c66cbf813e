from __future__ import annotations

import collections
import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import BatchEncoding

from ippo.callbacks.influence.batch_rows import column, count_rows, drop_rows, leaves, set_weight
from ippo.errors import UsageError

KEPT = torch.tensor([True, False, True])


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: Tensor
    texts: list[str]
    scale: float = 2.0


def rows() -> Tensor:
    return torch.arange(6.0).view(3, 2)


BATCHES: dict[str, Any] = {
    "tensor": rows,
    "list": lambda: [rows(), torch.arange(3), ["a", "b", "c"]],
    "tuple": lambda: (rows(), torch.arange(3)),
    "named tuple": lambda: Pair(rows(), torch.arange(3)),
    "dict": lambda: {"x": rows(), "text": ["a", "b", "c"], "temperature": 0.5, "none": None},
    "nested": lambda: {"inputs": {"x": rows()}, "more": (torch.arange(3), torch.tensor(7.0))},
    "tokenizer's": lambda: BatchEncoding({"input_ids": torch.arange(6).view(3, 2)}),
    "frozen dataclass": lambda: Frozen(rows(), ["a", "b", "c"]),
    "twice the same": lambda: dict.fromkeys(("x", "again"), rows()),
}


def content(batch: Any) -> list[Any]:
    return [leaf.tolist() if isinstance(leaf, Tensor) else list(leaf) for _, leaf in leaves(batch)]


@pytest.mark.parametrize("kind", BATCHES)
def test_rows_leave_in_place_and_come_back(kind: str) -> None:
    batch = BATCHES[kind]()
    whole, held = content(batch), [leaf for _, leaf in leaves(batch)]
    assert count_rows(batch) == 3
    undo = drop_rows(batch, KEPT)
    assert content(batch) == [[values[0], values[2]] for values in whole]
    assert all(now is before for (_, now), before in zip(leaves(batch), held, strict=True))
    undo()
    assert content(batch) == whole


def test_what_is_no_row_stays() -> None:
    batch = {"x": rows(), "scale": torch.tensor(3.0), "name": "train", "labels": ["cat", "dog"]}
    drop_rows(batch, KEPT)
    assert (batch["scale"], batch["name"], batch["labels"]) == (torch.tensor(3.0), "train", ["cat", "dog"])


def test_the_data_that_a_batch_was_cut_from_is_not_touched() -> None:
    data = torch.arange(10.0)
    batch = data[2:5]
    drop_rows(batch, KEPT)
    assert torch.equal(data, torch.arange(10.0))


class TestRefusals:
    @pytest.mark.parametrize(
        ("batch", "message"),
        [
            ((rows(), torch.arange(2)), r"batch\[1\] = '2 rows, where batch\[0\] has 3'"),
            ({"x": rows(), "y": {"z": torch.zeros(4)}}, r"4 rows, where batch\['x'\] has 3"),
            (collections.deque([1]), r"batch = 'a deque': its rows are not known: pass select="),
            ({"x": rows(), "graph": object()}, r"batch\['graph'\] = 'a object': .* pass select="),
            (torch.eye(3).to_sparse(), "a torch.sparse_coo tensor"),
            ({"text": ["a", "b"]}, "without a tensor"),
            (torch.tensor(1.0), "without a tensor"),
        ],
    )
    def test_names_the_place_and_the_remedy(self, batch: Any, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            count_rows(batch)

    def test_a_weight_needs_a_place(self) -> None:
        with pytest.raises(UsageError, match="a tuple has no place for it: use a dict"):
            set_weight((rows(),), torch.ones(3))


def test_weights_and_columns() -> None:
    @dataclasses.dataclass
    class Weighted:
        x: Tensor
        weight: Tensor | None = None

    batch, other = {"x": rows()}, Weighted(rows())
    for one in (batch, other):
        set_weight(one, torch.ones(3))
        assert torch.equal(column(one, "weight"), torch.ones(3))
        assert column(one, "rewards") is None
