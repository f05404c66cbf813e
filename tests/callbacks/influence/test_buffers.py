from __future__ import annotations

from typing import Any

import pytest
import torch
from parts import make_episodes

from ippo.callbacks.influence.buffers import DictBuffer, as_buffer
from ippo.errors import UsageError


def test_a_dict_is_filtered_row_by_row() -> None:
    columns = {"x": torch.arange(3), "text": ["a", "b", "c"], "scale": 0.5, "names": ("one", "two")}
    buffer: Any = as_buffer(columns)
    kept = buffer.reweight(torch.tensor([1.5, 0.0, 0.5])).select(torch.tensor([True, False, True])).columns
    assert kept["x"].tolist() == [0, 2]
    assert kept["text"] == ["a", "c"]
    assert kept["weight"].tolist() == [1.5, 0.5]
    assert (kept["scale"], kept["names"]) == (0.5, ("one", "two"))
    assert "weight" not in columns  # the module's own dict stays as it was
    assert len(columns["text"]) == 3


def test_chunks_are_dicts_in_order() -> None:
    chunks = DictBuffer({"x": torch.arange(5)}).chunks(2)
    assert [chunk["x"].tolist() for chunk in chunks] == [[0, 1], [2, 3], [4]]


def test_what_can_select_and_reweight_is_a_buffer() -> None:
    episodes = make_episodes()
    assert as_buffer(episodes) is episodes


def test_anything_else_is_refused() -> None:
    with pytest.raises(UsageError, match=r"episodes = 'a list': emit a dict of tensors, or an object with select"):
        as_buffer([torch.zeros(3)])
