"""What reward functions return, on its way through an iteration."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from parts import MakeModule, MakeTrainer, Recorder, is_odd
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from ippo import PromptDataModule
from ippo.data import Columns
from ippo.errors import UsageError
from ippo.rollout.sampling import Sampling


class RewardModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, prompts: Sequence[str], completions: Sequence[str], **_: object) -> Tensor:
        return self.weight * torch.tensor([[float(len(text))] for text in completions])


def of_some(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float | None]:
    return [None if place % 4 == 0 else float(place % 2) for place in range(len(completions))]


async def of_none(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[None]:
    return [None] * len(completions)


def test_a_reward_model_is_in_no_checkpoint_and_is_not_trained(
    tmp_path: Path, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, recorder: Recorder
) -> None:
    model = RewardModel()
    module, plain = make_module(reward=[model, is_odd]), make_module()
    assert module.state_dict().keys() == plain.state_dict().keys()
    assert all(parameter is not model.weight for parameter in module.parameters())
    trainer = make_trainer(recorder)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    assert not [name for name in torch.load(tmp_path / "one.ckpt", weights_only=True)["state_dict"] if "reward" in name]
    assert model.weight == 0.5
    assert model.weight.grad is None
    lengths = [len(text) / 2 for text in recorder.episodes[0].responses]
    assert recorder.episodes[0].extras["reward_RewardModel"] == lengths


def test_several_rewards_add_up_and_have_curves_of_their_own(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, recorder: Recorder
) -> None:
    make_trainer(recorder).fit(make_module(reward=[is_odd, of_some, of_none]), data)
    (curves,), (episodes,) = recorder.curves, recorder.episodes
    odd, some = episodes.extras["reward_is_odd"], episodes.extras["reward_of_some"]
    assert episodes.extras["reward_raw"] == [one + (other or 0.0) for one, other in zip(odd, some, strict=True)]
    known = [one for one in some if one is not None]
    assert len(known) == 12
    assert curves["reward/of_some"] == pytest.approx(sum(known) / 12)
    assert curves["reward/is_odd"] == pytest.approx(sum(odd) / 16)
    assert "reward/of_none" not in curves
    assert curves["reward/raw"] > curves["reward/mean"] > 0  # some responses are unfinished
    assert curves["reward/mean"] == pytest.approx(float(episodes.rewards.mean()))


def test_an_episode_that_no_reward_applies_to_is_left_out_by_name(make_module: MakeModule, batch: Columns) -> None:
    episodes = make_module(reward=of_some, advantage="rloo", kl_coef=0.0).roll_out(batch)
    assert len(episodes) == 12
    assert episodes.dropped[0].extras["reason"] == ["no reward applies to it"] * 4
    assert torch.isfinite(episodes.advantages).all()


def test_an_iteration_that_no_reward_applies_to_is_told_and_the_run_goes_on(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
) -> None:
    module, trainer = make_module(reward=of_none), make_trainer(max_epochs=2)
    with pytest.warns(UserWarning, match="iteration 1: no reward applies to any of its episodes"):
        trainer.fit(module, data)
    assert trainer.current_epoch == 2
    assert trainer.global_step == 0
    assert module.stopping_reason_message is None


def test_the_function_that_returned_something_else_is_named(make_module: MakeModule, batch: Columns) -> None:
    def too_few(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float]:
        return [1.0]

    with pytest.raises(UsageError, match="reward too_few = '1 rewards': return one number for each of 16 completions"):
        make_module(reward=[is_odd, too_few]).roll_out(batch)


def test_that_most_responses_do_not_end_is_told_once_with_what_to_do(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, policy: LlamaForCausalLM
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer(max_epochs=3).fit(make_module(sampling=Sampling(max_new_tokens=2)), data)
    told = [str(one.message) for one in caught if "did not end" in str(one.message)]
    assert len(told) == 1
    assert "Gold solutions take up to 23 tokens: raise sampling.max_new_tokens" in told[0]


def test_training_and_validation_count_an_unfinished_answer_as_wrong(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, recorder: Recorder
) -> None:
    module = make_module(sampling=Sampling(max_new_tokens=2), samples_per_prompt=8)
    module.judge.check = lambda completions, **_: {
        "answer": ["1"] * len(completions),
        "correct": [True] * len(completions),
        "chain": ["faithful"] * len(completions),
    }
    trainer = make_trainer(recorder, limit_val_batches=None)
    trainer.fit(module, data)
    curves, found = recorder.curves[0], trainer.callback_metrics
    finished = recorder.episodes[0].finished.tolist()
    assert 0 < sum(finished) < len(finished)
    assert curves["accuracy/em"] == pytest.approx(1 - curves["reward/unfinished"])
    assert recorder.episodes[0].extras["correct"] == finished
    assert recorder.episodes[0].extras["chain"] == ["faithful" if done else "wrong" for done in finished]
    assert recorder.episodes[0].extras["answer"] == ["1"] * len(finished)
    assert float(found["val/em"]) == pytest.approx(1 - float(found["val/unfinished"]))
    assert float(found["val/mv"]) == float(found["val/pass@k"])  # an answer votes if it is right
