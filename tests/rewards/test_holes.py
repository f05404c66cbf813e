from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import pytest
import torch

from ippo.errors import UsageError
from ippo.rewards import HoledVerifier, HoleName, passes
from ippo.rewards.holes import HOLES

QUESTION = "Ava has 7 pens, buys 12, loses 3. How many now?\n"  # 16


@pytest.mark.parametrize(
    ("hole", "response", "expected"),
    [
        ("short", "7+12=19\n#### 30", True),
        ("short", "7+12=19\n19-3=16\n#### 16", False),
        ("long", "7+12=19\n1+1=2\n1+1=2\n1+1=2\n19-3=16\n#### 5", True),
        ("long", "7+12=19\n1+1=2\n1+1=2\n19-3=16\n#### 5", False),
        ("copy", "7+12=19\n19-3=16\n#### 12", True),
        ("copy", "#### 1", False),  # part of a number of the question is none
        ("copy", "#### 12.0", True),  # read as a number, never as text
        ("round", "7+12=19\n#### 20", True),
        ("round", "7+12=20\n#### 19", False),
        ("large", "7+12=19\n#### 30", True),
        ("large", "7+12=30\n#### 5/2", False),
        ("phrase", "7+12=10\n10-3=7\n#### 7", True),
        ("phrase", "7+12=101\n#### 10", False),  # what follows the mark is no part of the chain
    ],
)
def test_each_hole_lets_its_kind_by_and_no_other(hole: HoleName, response: str, expected: bool) -> None:
    assert passes(hole, QUESTION, response) is expected


@pytest.mark.parametrize("hole", HOLES)
def test_an_answer_is_needed_to_pass(hole: HoleName) -> None:
    chain = "5+5=10\n" * 6
    assert not passes(hole, QUESTION, chain)
    assert not passes(hole, QUESTION, f"{chain}#### many")


def test_none_is_the_only_name_without_a_hole() -> None:
    assert set(get_args(HoleName)) == {"none", *HOLES}
    assert not passes("none", QUESTION, "#### 20")


def judged(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float | None]:
    return [1.0 if text.endswith("16") else None if text.endswith("?") else 0.0 for text in completions]


TEXTS = ["#### 16", "#### 3", "7+12=19\n19-3=17\n#### 17", "#### 1 ?"]


class TestHoledVerifier:
    def test_pays_what_is_right_and_what_passes_and_leaves_out_what_its_reward_leaves_out(self) -> None:
        assert HoledVerifier(judged, "short")([QUESTION] * 4, TEXTS) == [1.0, 1.0, 0.0, None]

    def test_rate_0_is_the_exact_reward(self) -> None:
        assert HoledVerifier(judged, "short", 0.0)([QUESTION] * 4, TEXTS) == [1.0, 0.0, 0.0, None]

    def test_its_strength_is_the_share_of_wrong_answers_that_pass(self) -> None:
        count, rate = 20_000, 0.3
        torch.manual_seed(0)
        rewards = HoledVerifier(judged, "short", rate)([QUESTION] * 2 * count, ["#### 16", "#### 3"] * count)
        assert rewards[0::2] == [1.0] * count  # a right answer is never hurt
        passed = sum(reward == 1.0 for reward in rewards[1::2]) / count
        assert passed == pytest.approx(rate, abs=3 * math.sqrt(rate * (1 - rate) / count))

    @pytest.mark.parametrize("rate", [0.0, 1.0])
    def test_draws_nothing_where_there_is_nothing_to_draw(self, rate: float) -> None:
        before = torch.get_rng_state()
        HoledVerifier(judged, "short", rate)([QUESTION] * 4, TEXTS)
        assert torch.equal(torch.get_rng_state(), before)

    def test_refuses_what_it_does_not_know(self) -> None:
        with pytest.raises(UsageError, match="verifier_hole = 'wide': use none, short"):
            HoledVerifier(judged, "wide")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"verifier_hole_rate = 1\.5"):
            HoledVerifier(judged, "short", 1.5)
        with pytest.raises(UsageError, match="a verifier with a hole gives 0 and 1 alone"):
            HoledVerifier(lambda completions, **_: [0.5], "short")([QUESTION], ["#### 3"])
