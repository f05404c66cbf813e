from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from parts import MakeModule, MakeTrainer, Recorder

from ippo import PromptDataModule
from ippo.data import Task
from ippo.data.prompts import PromptOptions
from ippo.ppo.unfinished import complaint, with_ceiling
from ippo.rollout.sampling import Sampling


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


def guess(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float]:
    """1 for a right answer and -1 for a wrong one, of a policy that guesses: two answers in five are right."""
    return [1.0 if place % 5 < 2 else -1.0 for place in range(len(completions))]


def test_where_wrong_answers_cost_something_the_policy_learns_to_end(
    make_module: MakeModule, make_trainer: MakeTrainer, task: Task, recorder: Recorder
) -> None:
    """An answer earns -0.2 on average, and one that does not end -0.6. At 0 for the latter, not to end would pay."""
    options = {"advantage": "rloo", "kl_coef": 0.0, "value_coef": 0.0, "minibatch_size": 64, "learning_rate": 3e-2}
    module = make_module(reward=guess, sampling=Sampling(max_new_tokens=4), **options)
    make_trainer(recorder, max_epochs=10).fit(module, PromptDataModule(task, PromptOptions(prompts_per_iteration=16)))
    unfinished = [curves["reward/unfinished"] for curves in recorder.curves]
    assert unfinished[0] > 0.5
    assert max(unfinished[-2:]) < 0.2
