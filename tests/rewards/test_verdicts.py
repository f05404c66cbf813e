from __future__ import annotations

from typing import Any

import pytest

from ippo.errors import UsageError
from ippo.rewards import NUMBERS, Judge, Verdicts

TEXTS = ["3*4 = 12\n#### 12", "3*4 = 12\n#### 12", "#### 13", "twelve"]
DONE = [True, False, True, False]


@pytest.fixture
def verdicts() -> Verdicts:
    return Judge(NUMBERS.check)(DONE, ["p"] * 4, TEXTS, answer=["12"] * 4)


def test_an_unfinished_answer_is_wrong_and_still_there_to_be_seen(verdicts: Verdicts) -> None:
    assert verdicts.answers == ["12", "12", "13", None]
    assert verdicts.right == [True, True, False, False]
    assert verdicts.correct == [True, False, False, False]
    assert verdicts.chains == ["faithful", "wrong", "wrong", "wrong"]


def test_an_unfinished_answer_does_not_vote(verdicts: Verdicts) -> None:
    assert verdicts.votes == ["12", None, "13", None]


def test_extras_of_episodes_are_the_verdict_and_whatever_else_a_check_says() -> None:
    def check(completions: list[str], **columns: Any) -> dict[str, list[Any]]:
        return {**NUMBERS.check(completions=completions, **columns), "words": [len(one.split()) for one in completions]}

    extras = Judge(check)(DONE, ["p"] * 4, TEXTS, answer=["12"] * 4).extras
    assert list(extras) == ["answer", "correct", "chain", "words"]
    assert extras["words"] == [5, 5, 2, 1]


def test_a_column_may_have_the_name_of_anything_here() -> None:
    assert Judge(NUMBERS.check)([True], ["p"], ["#### 1"], answer=["1"], finished=["x"], check=["y"]).correct == [True]


@pytest.mark.parametrize(
    ("truth", "what"),
    [
        ({"answer": ["1"], "correct": [True]}, "check = 'no chain': return columns answer, correct, chain"),
        ({"answer": [], "correct": [True], "chain": ["wrong"]}, "check = '0 entries of answer': return one entry"),
        ({"answer": ["1"], "correct": [True], "chain": ["good"]}, r"chain \['good'\].*: each chain is one of wrong,"),
    ],
)
def test_a_check_that_does_not_say_what_it_should_is_refused(truth: dict[str, list[Any]], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        Judge(lambda **_: truth)([True], ["p"], ["a"])
