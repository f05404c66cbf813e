from __future__ import annotations

import collections
import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import BatchEncoding

from ippo.callbacks.influence.batch_changes import drop_rows, pick_rows, set_weight
from ippo.callbacks.influence.batch_rows import RowReader, column, count_rows, require_rows
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
    "texts in a tuple": lambda: [rows(), ("a", "b", "c"), {"more": ("d", "e", "f")}],
    "images of any size, with their boxes": lambda: [
        [torch.zeros(4, width, 5) for width in (3, 4, 5)],
        [{"boxes": torch.zeros(count, 4), "labels": torch.zeros(count)} for count in (3, 0, 7)],
    ],
    "channel by channel": lambda: {"channels": [rows(), rows() + 1], "y": torch.arange(3)},
    "one number a row": lambda: {"x": rows(), "scales": [torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0)]},
    "named tuple": lambda: Pair(rows(), torch.arange(3)),
    "dict": lambda: {"x": rows(), "text": ["a", "b", "c"], "temperature": 0.5, "none": None},
    "nested": lambda: {"inputs": {"x": rows()}, "more": (torch.arange(3), torch.tensor(7.0))},
    "tokenizer's": lambda: BatchEncoding({"input_ids": torch.arange(6).view(3, 2)}),
    "frozen dataclass": lambda: Frozen(rows(), ["a", "b", "c"]),
    "twice the same": lambda: dict.fromkeys(("x", "again"), rows()),
}


def content(batch: Any, count: int = 3) -> list[Any]:
    found = [leaf.value for leaf in RowReader().leaves(batch, count)]
    return [leaf.tolist() if isinstance(leaf, Tensor) else list(leaf) for leaf in found]


@pytest.mark.parametrize("kind", BATCHES)
def test_rows_leave_in_place_and_come_back(kind: str) -> None:
    batch = BATCHES[kind]()
    whole, held = content(batch), [leaf.value for leaf in RowReader().leaves(batch, 3)]
    undo = drop_rows(batch, KEPT)
    left = content(batch, 2)
    assert [str(part) for part in left] == [str([values[0], values[2]]) for values in whole]
    now = [leaf.value for leaf in RowReader().leaves(batch, 2)]
    assert all(a is b for a, b in zip(now, held, strict=True) if not isinstance(a, tuple))
    undo()
    assert str(content(batch)) == str(whole)


@pytest.mark.parametrize("kind", [kind for kind in BATCHES if not kind.startswith("images")])
def test_counts_rows_and_picks_them_into_a_copy(kind: str) -> None:
    batch = BATCHES[kind]()
    whole = str(content(batch))
    assert count_rows(batch) == 3
    copy = pick_rows(batch, KEPT)
    assert str(content(batch)) == whole
    if kind not in ("frozen dataclass", "tokenizer's"):
        drop_rows(batch, KEPT)
        assert str(content(copy, 2)) == str(content(batch, 2))


class TestColumnsOrRows:
    """A list of tensors holds columns or rows: what fits, and where both do, as it was read before."""

    @staticmethod
    def pair(count: int) -> list[Tensor]:
        return [torch.zeros(count, 4), torch.ones(count, 4)]

    def test_two_tensors_alike_are_columns_once_a_batch_has_shown_it(self) -> None:
        reader, batch = RowReader(), self.pair(2)
        require_rows(self.pair(5), 5, reader)
        drop_rows(batch, torch.tensor([True, False]), reader)
        assert [len(part) for part in batch] == [1, 1]

    def test_they_are_rows_where_there_are_as_many_losses(self) -> None:
        reader, images = RowReader(), [torch.zeros(3, 4) for _ in range(5)]
        require_rows([images], 5, reader)
        batch = [[torch.zeros(3, 4) for _ in range(3)]]
        drop_rows(batch, KEPT, reader)
        assert [len(image) for image in batch[0]] == [3, 3]

    def test_what_nobody_can_know_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"batch = '2 entries of 2 rows each': rows or columns\? .* pass select="):
            drop_rows(self.pair(2), torch.tensor([True, False]))

    def test_other_types_or_axes_tell_columns_from_rows(self) -> None:
        batch = [torch.zeros(2, 4), torch.tensor([0, 1])]
        drop_rows(batch, torch.tensor([True, False]))
        assert [len(part) for part in batch] == [1, 1]


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
            (torch.nn.utils.rnn.pack_sequence([torch.zeros(2)]), "a PackedSequence"),
        ],
    )
    def test_names_the_place_and_the_remedy(self, batch: Any, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            count_rows(batch)

    def test_rows_that_cannot_leave_in_place(self) -> None:
        with pytest.raises(
            UsageError, match=r"batch\[1\] = 'a tuple of rows in a tuple': .* let collate_fn return lists"
        ):
            drop_rows((rows(), ("a", "b", "c")), KEPT)

    def test_losses_of_another_number(self) -> None:
        with pytest.raises(UsageError, match="losses = '2 losses for a batch of 3 rows'"):
            require_rows([rows(), torch.arange(3)], 2, RowReader())

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
        undo = set_weight(one, torch.ones(3))
        assert torch.equal(column(one, "weight"), torch.ones(3))
        assert column(one, "rewards") is None
        undo()
        assert column(one, "weight") is None
    assert "weight" not in batch
