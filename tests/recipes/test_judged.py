"""The answers that a test keeps to show."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from parts import MakeModule

from ippo.recipes.judged import SHOWN, Judged
from ippo.rewards import NUMBERS


def test_they_earn_what_training_would_give_them(make_module: MakeModule) -> None:
    judged, trainer = Judged(samples=2), SimpleNamespace(testing=True)
    table: dict[str, Any] = {
        "prompt": ["1+1?", "1+1?", "2+2?", "2+2?"],
        "response": ["#### 3", "#### 2", "#### 4", "#### 4"],  # the first of each problem is shown
        "gold": ["2", "2", "4", "4"],
        "answer": ["3", "2", "4", "4"],
        "correct": [False, True, True, True],
        "finished": [True] * 4,
        "chain": ["wrong", "unverifiable", "unverifiable", "unverifiable"],
    }
    judged.on_answers(trainer, make_module(reward=NUMBERS.reward), table)  # type: ignore[arg-type]
    assert [(one["response"], one["reward"]) for one in judged.answers] == [("#### 3", 0.0), ("#### 4", 1.0)]
    assert judged.problems == 2


def test_a_few_of_many_are_kept(make_module: MakeModule) -> None:
    judged, trainer, count = Judged(samples=1), SimpleNamespace(testing=True), SHOWN + 3
    columns = {"prompt": "1+1?", "response": "#### 2", "gold": "2", "answer": "2", "correct": True, "finished": True}
    table: dict[str, Any] = {name: [value] * count for name, value in columns.items()}
    judged.on_answers(trainer, make_module(reward=NUMBERS.reward), table)  # type: ignore[arg-type]
    assert (len(judged.answers), judged.problems) == (SHOWN, count)
