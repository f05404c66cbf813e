"""An engine that did not sample from the policy as it is shows, is told once, and is made up for where asked."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from parts import MakeModule, MakeTrainer, Recorder, ppo_loss_by_hand
from transformers import PreTrainedTokenizerFast

from ippo import Episodes, PPOModule, PromptDataModule
from ippo.data import Columns
from ippo.errors import UsageError
from ippo.ppo.engine_gap import WIDE
from ippo.rollout.engines.hf import HFGenerate
from ippo.rollout.sampling import Sampling
from ippo.rollout.sequences import Sequences


class StaleEngine(HFGenerate):
    """Samples from the weights of its first rollout, whatever becomes of the policy."""

    own_kernels = True
    first: Any = None

    def generate(self, policy: Any, prompts: Sequence[str], sampling: Sampling) -> Sequences:
        self.first = self.first or copy.deepcopy(policy)
        return super().generate(self.first, prompts, sampling)


class SilentEngine(HFGenerate):
    """Tells no log-probabilities, like an engine of the user's own."""

    def generate(self, policy: Any, prompts: Sequence[str], sampling: Sampling) -> Sequences:
        return replace(super().generate(policy, prompts, sampling), engine_logprobs=None)


def fit(
    module: PPOModule, make_trainer: MakeTrainer, data: PromptDataModule, recorder: Recorder
) -> tuple[list[dict[str, float]], list[str]]:
    """The curves of three iterations, and what was said of the engine."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer(recorder, max_epochs=3).fit(module, data)
    return recorder.curves, [str(one.message) for one in caught if "ppo/engine_gap" in str(one.message)]


def test_an_engine_with_stale_weights_is_told_once(
    make_module: MakeModule,
    make_trainer: MakeTrainer,
    data: PromptDataModule,
    recorder: Recorder,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    module = make_module(engine=StaleEngine(tokenizer), learning_rate=0.02)
    curves, told = fit(module, make_trainer, data, recorder)
    gaps = [one["ppo/engine_gap"] for one in curves]
    assert gaps[0] < 1e-5 < WIDE < min(gaps[1:])
    assert len(told) == 1
    assert "Likely its weights are stale" in told[0]
    assert max(one["ppo/mismatch"] for one in curves) < 1e-5  # which compares the policy with itself
    assert [abs(one["ppo/importance"] - 1) < 1e-4 for one in curves] == [True, False, False]
    assert curves[0]["ppo/importance_cut"] == 0 < curves[2]["ppo/importance_cut"] < 1


def test_an_engine_that_follows_the_policy_is_not(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, recorder: Recorder
) -> None:
    curves, told = fit(make_module(learning_rate=0.02), make_trainer, data, recorder)
    assert max(one["ppo/engine_gap"] for one in curves) < 1e-5
    assert "ppo/importance" not in curves[0]  # the same kernels: nothing to make up for
    assert not told


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_engine_tells_what_the_policy_finds(make_module: MakeModule, batch: Columns, temperature: float) -> None:
    episodes = make_module(sampling=Sampling(temperature, max_new_tokens=24)).roll_out(batch)
    mask = episodes.response_mask
    assert episodes.engine_logprobs is not None
    torch.testing.assert_close(episodes.engine_logprobs[mask], episodes.old_logprobs[mask], rtol=0, atol=1e-5)


def test_nothing_is_told_of_draws_from_another_law(make_module: MakeModule, tokenizer: PreTrainedTokenizerFast) -> None:
    policy = make_module().model.policy
    for other in (Sampling(top_p=0.5, max_new_tokens=3), Sampling(temperature=0.0, max_new_tokens=3)):
        assert HFGenerate(tokenizer).generate(policy, ["2?\n"], other).engine_logprobs is None


class TestCorrection:
    def episodes(self, rollout: Episodes) -> Episodes:
        return replace(rollout, importance=torch.linspace(0, 2, rollout.response_ids.numel()).view_as(rollout.values))

    def test_each_token_s_loss_is_multiplied_by_its_weight(self, make_module: MakeModule, rollout: Episodes) -> None:
        module, episodes = make_module(), self.episodes(rollout)
        assert episodes.importance is not None
        found = module.policy_losses(module.model.policy, episodes)
        for row in (0, 5):
            weighed = replace(rollout, advantages=rollout.advantages * episodes.importance)  # at rho = 1 it is the same
            by_hand = ppo_loss_by_hand(module.model.policy, weighed, row)
            torch.testing.assert_close(found[row], by_hand, rtol=1e-5, atol=1e-7)

    def test_weights_go_with_their_rows(self, rollout: Episodes) -> None:
        episodes = self.episodes(rollout)
        assert episodes.importance is not None
        assert torch.equal(episodes.rows(torch.tensor([3])).importance, episodes.importance[3:4])  # type: ignore[arg-type]
        assert episodes.weightless().importance is None

    def test_on_needs_an_engine_that_tells(
        self, make_module: MakeModule, batch: Columns, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        module = make_module(engine=SilentEngine(tokenizer), importance_correction="on")
        with pytest.raises(UsageError, match="SilentEngine tells no log-probabilities"):
            module.roll_out(batch)
        assert make_module(engine=SilentEngine(tokenizer)).roll_out(batch).importance is None

    def test_on_and_off_are_obeyed(self, make_module: MakeModule, batch: Columns) -> None:
        assert make_module(importance_correction="on").roll_out(batch).importance is not None
        module = make_module(importance_correction="off")
        module.engine.own_kernels = True  # type: ignore[attr-defined]
        assert module.roll_out(batch).importance is None

    def test_a_cap_below_one_is_refused(self, make_module: MakeModule) -> None:
        with pytest.raises(UsageError, match=r"ppo\.importance_cap = 0\.5"):
            make_module(importance_cap=0.5)
