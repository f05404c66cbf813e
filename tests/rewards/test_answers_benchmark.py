"""A quick version of ``benchmarks/answers.py``, and the harness itself put to the test."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import answers as harness  # type: ignore[import-not-found]
from math_golds import REWRITES, golds  # type: ignore[import-not-found]

sys.path.pop(0)


def test_every_spelling_of_random_numbers_is_read_as_what_it_is() -> None:
    texts, misses = harness.read_numbers(60, seed=1)
    assert texts > 300
    assert misses == []


def test_numbers_that_go_on_are_unreadable() -> None:
    assert harness.read_tails(400, seed=1) == []


def test_the_harness_finds_a_reader_of_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    def prefix(response: str) -> str | None:
        digits = response.rpartition("####")[2].strip().partition(" ")[0].rstrip(".")
        return digits if digits.isdigit() else None

    monkeypatch.setattr(harness, "final_answer", prefix)
    assert harness.read_tails(100, seed=1)
    assert harness.read_numbers(20, seed=1)[1]


def test_the_harness_finds_a_judge_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_sign(gold: str, answer: str, limit: float) -> bool:
        return gold[:1] == answer[:1]

    monkeypatch.setattr(harness, "latex_equal", first_sign)
    monkeypatch.setattr(harness, "math_verify_alone", lambda gold, response: False)
    found = harness.judge_math(1, seed=1)
    assert found["missed"]
    assert found["let by"]


def test_golds_of_every_kind_have_rewrites_and_others() -> None:
    made: list[Any] = golds(2, seed=1)
    assert made == golds(2, seed=1)
    assert len({gold.kind for gold in made}) * 2 == len(made)
    assert all(gold.text not in gold.others and gold.others for gold in made)
    assert len(REWRITES) == 11
    assert all(any(rewrite(gold) for gold in made) for rewrite in REWRITES.values())
