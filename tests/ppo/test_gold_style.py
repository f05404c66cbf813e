"""Gold solutions that the policy would never write."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from parts import MakeModule, MakeTrainer, Recorder, Reseed, make_episodes
from torch import Tensor
from transformers import LlamaForCausalLM

from ippo import PromptDataModule
from ippo.callbacks import InfluenceFilterCallback
from ippo.data.task import Columns
from ippo.influence import AdamPreconditioned, BufferDirection, Direction, ReturnDirection
from ippo.ppo.gold_style import StyleWarning, own_surprise

FOREIGN = "the gold solutions are foreign to the policy"


def test_own_surprise_is_the_mean_over_answers_of_nats_a_token() -> None:
    logprobs = torch.tensor([[-1.0, -3.0], [-4.0, 0.0]])
    mask = torch.tensor([[True, True], [True, False]])
    assert own_surprise(logprobs, mask) == pytest.approx(3.0)


def told(gold_loss: float, times: int = 1) -> list[str]:
    episodes = make_episodes(3)
    own = own_surprise(episodes.old_logprobs, episodes.response_mask)
    watch = StyleWarning("guard")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            watch.look_at(own + gold_loss, episodes)
    return [str(one.message) for one in caught if FOREIGN in str(one.message)]


def test_it_is_told_once_and_only_where_they_surprise_far_more_than_own_answers() -> None:
    assert not told(1.9)
    (message,) = told(2.1, times=3)
    assert message.startswith("guard: ")
    assert "judged_by='check'" in message


def test_it_waits_for_an_answer_where_an_earlier_filter_has_left_none() -> None:
    episodes = make_episodes(3)
    own = own_surprise(episodes.old_logprobs, episodes.response_mask)
    watch = StyleWarning("guard")
    watch.look_at(own + 9, episodes.rows(torch.zeros(3, dtype=torch.bool)))
    with pytest.warns(UserWarning, match=FOREIGN):
        watch.look_at(own + 9, episodes)


@pytest.mark.parametrize(
    ("direction", "expected"),
    [(None, True), (AdamPreconditioned(), True), (BufferDirection(), False)],
    ids=["gold solutions", "by Adam", "no gold"],
)
def test_the_filter_tells_it_of_a_policy_that_is_sure_of_other_answers(
    direction: Direction | None,
    expected: bool,
    make_module: MakeModule,
    make_trainer: MakeTrainer,
    data: PromptDataModule,
    policy: LlamaForCausalLM,
) -> None:
    with torch.no_grad():
        policy.lm_head.weight *= 8  # sure of what it says, which is no solution
    module = make_module(policy)
    filter_ = InfluenceFilterCallback.paper(direction=direction, min_survival=0.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer(filter_, Recorder(), max_epochs=2).fit(module, data)
    assert sum(FOREIGN in str(one.message) for one in caught) == expected


def parity(prompts: Sequence[str], completions: Sequence[str], **_: object) -> dict[str, list[Any]]:
    """A truth that an untrained policy meets half of the time."""
    right = [len(text) % 2 == 0 for text in completions]
    return {"answer": [*completions], "correct": right, "chain": ["wrong"] * len(right)}


class TestAnswersJudgedByTheCheck:
    @staticmethod
    def never(**_: Any) -> list[float]:
        raise AssertionError("the training's reward has no say")

    def test_earn_what_is_true(self, make_module: MakeModule, batch: Columns) -> None:
        torch.manual_seed(0)
        module = make_module(reward=self.never)
        module.judge.check = parity
        episodes = module.roll_out(batch, judged_by="check")
        texts = episodes.responses
        expected = [float(len(text) % 2 == 0 and done) for text, done in zip(texts, episodes.finished, strict=True)]
        assert episodes.rewards.tolist() == expected
        assert set(expected) == {0.0, 1.0}

    def test_make_a_direction_in_which_the_trainings_reward_has_no_part(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        """Where the training pays for what is wrong each advantage has the other sign, and so has each score."""

        def scores(paid_for: int) -> Tensor:
            def paid(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float]:
                return [float(len(text) % 2 == paid_for) for text in completions]

            direction = ReturnDirection("validation", judged_by="check")
            filter_, recorder = InfluenceFilterCallback.paper(direction=direction, dry_run=True), Recorder()
            free = {"advantage": "rloo", "kl_coef": 0.0, "value_coef": 0.0, "unfinished_reward": 1.0}
            module = make_module(reward=paid, **free)
            module.judge.check = parity
            make_trainer(Reseed(), filter_, recorder).fit(module, data)
            return torch.tensor(recorder.episodes[0].records()["score"])

        wrong, right = scores(1), scores(0)
        assert right.abs().max() > 0
        torch.testing.assert_close(wrong, -right, rtol=1e-4, atol=1e-6)

    def test_that_are_all_alike_are_said_to_give_no_direction(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        filter_ = InfluenceFilterCallback.paper(direction=ReturnDirection("validation", judged_by="check"))
        module = make_module()
        module.judge.check = lambda prompts, completions, **_: {
            **parity(prompts, completions),
            "correct": [False] * len(completions),
        }
        with pytest.warns(UserWarning, match=r"all \d+ answers to the gold problems earn 0, so that"):
            make_trainer(filter_).fit(module, data)

    def test_the_trainings_own_are_rewarded_as_ever(self, make_module: MakeModule, batch: Columns) -> None:
        with pytest.raises(AssertionError, match="the training's reward has no say"):
            make_module(reward=self.never).roll_out(batch)
