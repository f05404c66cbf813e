"""A verifier that errs on purpose, around any task's reward."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from ippo.data import Task, VerifierOptions
from ippo.data.verifier import with_verifier
from ippo.errors import UsageError
from ippo.rewards import CHOICES, NUMBERS

COUNT = 4000


def row(prompt: str, solution: str) -> dict[str, Any]:
    return {"prompt": prompt, "solution": solution, "answer": "16"}


@pytest.fixture
def task() -> Task:
    splits = [
        [row(f"{split}: 7, 12 and 3?", "7+12=19\n19-3=16\n#### 16")] for split in ("train", "gold", "val", "test")
    ]
    return Task("sums", *splits, NUMBERS.reward, NUMBERS.check, notice="Made by hand.")


def asked(task: Task, texts: list[str]) -> tuple[list[float], list[str]]:
    """What each answer to the same question earns, and the class of its chain."""
    columns = {"prompts": ["7, 12 and 3?"] * len(texts), "completions": texts, "answer": ["16"] * len(texts)}
    reward: Any = task.reward
    return reward(**columns), list(task.check(**columns)["chain"])


RIGHT, SHORT, LONGER = "7+12=19\n19-3=16\n#### 16", "7+12=19\n#### 30", "7+12=19\n19-3=17\n#### 17"


def test_an_honest_one_leaves_the_task_as_it_is(task: Task) -> None:
    assert with_verifier(task, VerifierOptions()) is task


def test_a_hole_pays_for_wrong_answers_of_its_kind_which_are_classed_hacked_and_stay_wrong(task: Task) -> None:
    holed = with_verifier(task, VerifierOptions(hole="short"))
    assert asked(task, [RIGHT, SHORT, LONGER]) == ([1.0, 0.0, 0.0], ["faithful", "wrong", "wrong"])
    assert asked(holed, [RIGHT, SHORT, LONGER]) == ([1.0, 1.0, 0.0], ["faithful", "hacked", "wrong"])
    columns = {"prompts": ["?"], "completions": [SHORT], "answer": ["16"]}
    assert holed.check(**columns)["correct"] == [False]
    assert holed.check(**columns)["answer"] == ["30"]
    assert "Made by hand. The training verifier lets 100% of 'short' answers by, on purpose" in holed.notice


def test_a_share_of_them_passes_where_a_rate_is_given(task: Task) -> None:
    torch.manual_seed(0)
    rewards, chains = asked(with_verifier(task, VerifierOptions(hole="short", hole_rate=0.25)), [SHORT] * COUNT)
    assert sum(rewards) / COUNT == pytest.approx(0.25, abs=0.02)
    assert set(chains) == {"hacked"}  # passed or not


def test_errors_within_a_prompt_fall_together(task: Task) -> None:
    options = VerifierOptions(error=0.25, error_icc=0.53)
    reward: Any = with_verifier(task, options).reward
    prompts = [f"question {place // 2}" for place in range(2 * COUNT)]
    torch.manual_seed(0)
    rewards = reward(prompts=prompts, completions=[LONGER] * 2 * COUNT, answer=["16"] * 2 * COUNT)
    pairs = torch.tensor(rewards).view(COUNT, 2)
    assert float(pairs.mean()) == pytest.approx(0.25, abs=0.02)
    assert float(torch.corrcoef(pairs.T)[0, 1]) == pytest.approx(0.53, abs=0.05)
    assert "errs on 25% of its rewards, in groups (ICC 0.53), on purpose" in with_verifier(task, options).notice


@pytest.mark.parametrize(("side", "expected"), [("right", [0.0, 0.0]), ("wrong", [1.0, 1.0]), ("both", [0.0, 1.0])])
def test_it_errs_on_the_side_that_it_is_told(task: Task, side: Any, expected: list[float]) -> None:
    erring = with_verifier(task, VerifierOptions(error=1.0, errs_on=side))
    assert asked(erring, [RIGHT, LONGER])[0] == expected


def test_what_passes_a_hole_may_be_missed_at_random_as_well(task: Task) -> None:
    both = with_verifier(task, VerifierOptions(hole="short", error=1.0))
    assert asked(both, [RIGHT, SHORT, LONGER])[0] == [0.0, 0.0, 1.0]


class TestRefuses:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"error": 1.5}, r"verifier\.error = 1\.5"),
            ({"hole_rate": -0.1}, r"verifier\.hole_rate = -0\.1"),
            ({"hole": "short", "error_icc": 2.0}, r"verifier\.error_icc = 2\.0"),
        ],
    )
    def test_shares_that_are_none(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            VerifierOptions(**options)

    def test_errors_that_correlate_where_there_are_none(self, task: Task) -> None:
        with pytest.raises(UsageError, match=r"verifier\.error_icc = 0\.5: there are no errors to correlate"):
            with_verifier(task, VerifierOptions(hole="short", error_icc=0.5))

    def test_a_task_of_several_rewards(self, task: Task) -> None:
        several = dataclasses.replace(task, reward=[NUMBERS.reward, NUMBERS.reward])
        with pytest.raises(UsageError, match="verifier = '2 rewards'"):
            with_verifier(several, VerifierOptions(error=0.1))

    def test_a_hole_where_answers_are_no_numbers(self, task: Task) -> None:
        letters = [{**task.gold[0], "solution": "#### A", "answer": "A", "options": {"A": "bed"}}]
        choices = dataclasses.replace(task, gold=letters, reward=CHOICES.reward, check=CHOICES.check)
        with pytest.raises(
            UsageError, match="a hole reads a number after ####, which this gold solution of sums has not"
        ):
            with_verifier(choices, VerifierOptions(hole="long"))
