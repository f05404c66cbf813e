from __future__ import annotations

from typing import Any

import pytest

from ippo.data import Task, columns
from ippo.errors import UsageError

SPLITS = ("gold", "validation", "test", "train")


def make_task(**splits: Any) -> Task:
    rows: dict[str, Any] = {split: [{"prompt": split, "solution": "#### 1", "answer": "1"}] for split in SPLITS}
    return Task("toy", **{**rows, **splits}, reward=lambda **_: [0.0], check=lambda **_: {})


def test_columns_turn_rows_around() -> None:
    assert columns([{"a": 1, "b": [2]}, {"a": 3, "b": []}]) == {"a": [1, 3], "b": [[2], []]}


@pytest.mark.parametrize("split", SPLITS)
def test_refuses_an_empty_split_by_name(split: str) -> None:
    with pytest.raises(UsageError, match=rf"task\.{split} = 0: a task needs at least one row"):
        make_task(**{split: []})


@pytest.mark.parametrize(("first", "second"), [("gold", "test"), ("validation", "train"), ("gold", "validation")])
def test_refuses_a_prompt_in_two_splits_and_names_all_three(first: str, second: str) -> None:
    shared = [{"prompt": f"other {second}"}, {"prompt": "2+2?"}]
    with pytest.raises(UsageError, match=rf"task\.{second} = '2\+2\?': this prompt is also in the {first} split"):
        make_task(**{first: [{"prompt": "2+2?"}], second: shared})


def test_a_split_may_repeat_its_own_prompt() -> None:
    assert len(make_task(train=[{"prompt": "2+2?"}] * 2).train) == 2
