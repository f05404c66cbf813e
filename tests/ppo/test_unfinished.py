from __future__ import annotations

import pytest
import torch

from ippo.ppo.unfinished import complaint, with_ceiling


@pytest.mark.parametrize(
    ("ceiling", "expected"),
    [(0.0, [-1.0, 1.0, -1.0, 0.0]), (-1.0, [-1.0, 1.0, -1.0, -1.0]), (float("inf"), [-1.0, 1.0, -1.0, 1.0])],
)
def test_an_unfinished_response_never_beats_a_finished_one_that_says_the_same(
    ceiling: float, expected: list[float]
) -> None:
    rewards, finished = torch.tensor([-1.0, 1.0, -1.0, 1.0]), torch.tensor([True, True, False, False])
    found = with_ceiling(rewards, finished, ceiling)
    assert found.tolist() == expected
    assert (found[2:] <= found[:2]).all()


def test_a_reward_that_is_no_number_is_not_hidden_by_the_ceiling() -> None:
    assert with_ceiling(torch.tensor([float("nan")]), torch.tensor([False]), 0.0).isnan().all()


@pytest.mark.parametrize(
    ("longest", "remedy"),
    [
        (9, "Gold solutions take up to 9 tokens: raise sampling.max_new_tokens"),
        (8, "if they go on after the answer, warm-start longer"),
        (None, "If their texts are cut, raise sampling.max_new_tokens"),
    ],
)
def test_the_line_says_what_to_do(longest: int | None, remedy: str) -> None:
    line = complaint(0.6, 8, -0.5, longest)
    assert line.startswith("60% of the responses did not end within sampling.max_new_tokens = 8")
    assert "earns at most -0.5 (ppo.unfinished_reward)" in line
    assert remedy in line
