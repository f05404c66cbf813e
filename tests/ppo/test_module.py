from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from parts import (
    CountingEngine,
    Gradients,
    MakeModule,
    MakeTrainer,
    Recorder,
    Replay,
    Reseed,
    ppo_loss_by_hand,
    push_eos,
    state,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from transformers import LlamaForCausalLM

from ippo import Episodes, PPOModule, PromptDataModule
from ippo.callbacks import InfluenceFilterCallback
from ippo.data import Columns, Task
from ippo.data.prompts import PromptOptions
from ippo.errors import UsageError
from ippo.ppo.options import EvaluationOptions
from ippo.rewards import Judge
from ippo.rollout.sampling import Sampling
from ippo.rollout.sequences import Sequences
from ippo.sft import demonstration_loss

NAN = float("nan")

TAGS = {
    "reward/mean",
    "reward/raw",
    "reward/unfinished",
    "reward/length",
    "accuracy/em",
    "accuracy/false_positive",
    "influence/kept_fraction",
    "influence/score_mean",
    "influence/gold_loss",
    "influence/effective_sample_size",
    "ppo/policy_loss",
    "ppo/value_loss",
    "ppo/kl",
    "ppo/entropy",
    "ppo/clip_fraction",
    "ppo/explained_variance",
    "val/em",
    "val/mv",
    "val/em_greedy",
    "val/pass@k",
    "val/false_positive",
    "time/rollout",
    "time/score",
    "time/update",
}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return any(not torch.equal(value, after[name]) for name, value in before.items())


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return max(float((value - second[name]).abs().max()) for name, value in first.items())


class TestRollOut:
    def test_takes_samples_prompt_by_prompt(self, rollout: Episodes, batch: Columns) -> None:
        assert rollout.prompts == [prompt for prompt in batch["prompt"] for _ in range(4)]
        assert rollout.groups.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
        assert (rollout.weights == 1).all()
        assert (rollout.values == 0).all()  # the critic's head starts at zero

    def test_notes_are_the_truth_about_each_response(self, rollout: Episodes, batch: Columns, task: Task) -> None:
        truth = [
            task.check([prompt], [text], answer=[batch["answer"][group]], steps=[batch["steps"][group]])
            for prompt, text, group in zip(rollout.prompts, rollout.responses, rollout.groups.tolist(), strict=True)
        ]
        finished = rollout.finished.tolist()
        assert rollout.extras["answer"] == [one["answer"][0] for one in truth]
        assert rollout.extras["correct"] == [
            one["correct"][0] and done for one, done in zip(truth, finished, strict=True)
        ]
        chains = [one["chain"][0] if done else "wrong" for one, done in zip(truth, finished, strict=True)]
        assert rollout.extras["chain"] == chains

    def test_unfinished_responses_earn_nothing(self, make_module: MakeModule, batch: Columns) -> None:
        def praise(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float]:
            return [1.0] * len(completions)

        episodes = make_module(reward=praise, sampling=Sampling(max_new_tokens=8)).roll_out(batch)
        assert 0 < episodes.finished.sum() < len(episodes)
        assert episodes.rewards.tolist() == episodes.finished.float().tolist()

    def test_advantages_are_whitened_returns_minus_values(self, rollout: Episodes) -> None:
        """At gamma = lambda = 1 and values 0: the sum of all rewards from here on; policy and reference agree."""
        mask = rollout.response_mask
        returns = rollout.rewards.unsqueeze(1) * mask
        torch.testing.assert_close(rollout.returns, returns, rtol=0, atol=1e-5)
        real = returns[mask]
        expected = (returns - real.mean()) / real.std(unbiased=False) * mask
        torch.testing.assert_close(rollout.advantages, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(("place", "price"), [("reward", 0.5), ("loss", 0.0)])
    def test_the_price_of_divergence_is_in_the_returns_where_asked(
        self, make_module: MakeModule, batch: Columns, place: str, price: float
    ) -> None:
        module = make_module(kl_coef=0.5, kl_place=place, kl_estimator="k1" if place == "reward" else "k3")
        with torch.no_grad():
            module.model.policy.model.norm.weight.mul_(1.2)
        episodes = module.roll_out(batch)
        gap = (episodes.old_logprobs - episodes.reference_logprobs) * episodes.response_mask
        assert gap.abs().max() > 0.1
        torch.testing.assert_close(episodes.returns[:, 0], episodes.rewards - price * gap.sum(1), rtol=1e-4, atol=1e-4)

    def test_logprobs_are_taken_at_the_temperature_of_the_sampling(
        self, make_module: MakeModule, batch: Columns
    ) -> None:
        module = make_module(sampling=Sampling(temperature=0.6, max_new_tokens=8))
        (one,) = module.roll_out(batch).rows(torch.tensor([5])).chunks(1)
        with torch.no_grad():
            logits = module.model.policy(one.input_ids).logits[0, one.prompt_ids.shape[1] - 1 : -1]
        expected = (logits / 0.6).log_softmax(-1).gather(1, one.response_ids.T).T
        torch.testing.assert_close(one.old_logprobs, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one.reference_logprobs, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("advantage", ["rloo", "group_relative"])
    def test_group_estimators_compare_the_samples_of_one_prompt(
        self, make_module: MakeModule, batch: Columns, advantage: str
    ) -> None:
        episodes = make_module(advantage=advantage, kl_place="loss", kl_estimator="k3").roll_out(batch)
        rewards = episodes.rewards.view(4, 4)
        assert len(set(rewards.sum(1).tolist())) > 1
        centred = rewards - rewards.mean(1, keepdim=True)
        expected = centred * 4 / 3 if advantage == "rloo" else centred / rewards.std(1, keepdim=True)
        expected = expected.nan_to_num(0).flatten().unsqueeze(1) * episodes.response_mask
        torch.testing.assert_close(episodes.advantages, expected)

    def test_an_episode_without_a_finite_reward_is_dropped_by_name(
        self, make_module: MakeModule, batch: Columns
    ) -> None:
        def reward(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float]:
            return [NAN if place in (1, 6) else float(place % 2) for place in range(len(completions))]

        episodes = make_module(reward=reward).roll_out(batch)
        assert len(episodes) == 14
        (dropped,) = episodes.dropped
        assert dropped.extras["reason"] == ["a log-probability, value or reward is not finite"] * 2
        assert torch.isfinite(episodes.advantages).all()


class TestIteration:
    def test_trains_policy_and_value_but_not_the_reference(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        module = make_module()
        models: Any = module.model
        parts = (models.policy, models.value, models.reference)
        before = [state(part) for part in parts]
        make_trainer().fit(module, data)
        assert [changed(was, state(part)) for was, part in zip(before, parts, strict=True)] == [True, True, False]

    @pytest.mark.parametrize("temperature", [1.0, 0.6])
    def test_first_step_starts_at_ratio_one(
        self,
        make_module: MakeModule,
        make_trainer: MakeTrainer,
        data: PromptDataModule,
        recorder: Recorder,
        temperature: float,
    ) -> None:
        sampling = Sampling(temperature=temperature, max_new_tokens=24)
        module = make_module(sampling=sampling, minibatch_size=16, clip_low=1e-4, clip_high=1e-4)
        make_trainer(recorder).fit(module, data)
        curves, episodes = recorder.curves[0], recorder.episodes[0]
        assert curves["ppo/clip_fraction"] == 0.0
        assert abs(curves["ppo/policy_step"]) < 1e-8
        means = (episodes.advantages * episodes.response_mask).sum(1) / episodes.lengths
        assert curves["ppo/policy_loss"] == pytest.approx(-means.mean().item(), abs=1e-5)
        assert curves["ppo/value_loss"] == pytest.approx(
            ((episodes.returns**2).sum(1) / episodes.lengths / 2).mean().item(), abs=1e-5
        )

    def test_dropout_is_off_so_that_later_iterations_start_at_ratio_one_too(
        self,
        make_module: MakeModule,
        make_trainer: MakeTrainer,
        data: PromptDataModule,
        recorder: Recorder,
        policy: LlamaForCausalLM,
    ) -> None:
        for layer in policy.model.layers:
            layer.self_attn.attention_dropout = 0.5
        module = make_module(policy.train(), minibatch_size=16, clip_low=1e-4, clip_high=1e-4).train()
        make_trainer(recorder, max_epochs=2, limit_val_batches=1).fit(module, data)
        assert [curves["ppo/clip_fraction"] for curves in recorder.curves] == [0.0, 0.0]

    def test_dropped_episodes_leave_no_trace(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, rollout: Episodes
    ) -> None:
        mask = torch.arange(len(rollout)) % 3 > 0
        ends = []
        for episodes in (rollout.select(mask, "unwanted"), rollout.rows(mask)):
            module = make_module(inner_epochs=2, minibatch_size=4)
            make_trainer(Replay(episodes)).fit(module, data)
            ends.append(state(module.model))
        assert not changed(*ends)

    def test_a_weight_of_zero_is_as_good_as_dropping_for_the_policy(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, rollout: Episodes
    ) -> None:
        mask = torch.arange(len(rollout)) % 2 == 0
        found = []
        for episodes in (rollout.reweight(mask.float()), rollout.select(mask)):
            gradients = Gradients()
            make_trainer(Replay(episodes), gradients).fit(make_module(minibatch_size=16, max_grad_norm=1e9), data)
            found.append(gradients.steps[0])
        assert distance(*found) < 1e-6

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_weights_scale_the_gradient_of_the_policy(
        self,
        make_module: MakeModule,
        make_trainer: MakeTrainer,
        data: PromptDataModule,
        rollout: Episodes,
        shared_policy: LlamaForCausalLM,
        reduction: str,
    ) -> None:
        weights = torch.linspace(0.2, 3.0, len(rollout))
        gradients = Gradients()
        module = make_module(minibatch_size=16, max_grad_norm=1e9, reduction=reduction, clip_low=0.1, clip_high=0.1)
        make_trainer(Replay(rollout.reweight(weights)), gradients).fit(module, data)

        losses = torch.stack([ppo_loss_by_hand(shared_policy, rollout, row, clip=0.1) for row in range(len(rollout))])
        if reduction == "mean":
            loss = (weights * losses).sum() / len(rollout)
        else:
            loss = (weights * losses * rollout.lengths).sum() / rollout.lengths.sum()
        names, parameters = zip(*shared_policy.named_parameters(), strict=True)
        expected = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
        (found,) = gradients.steps
        scale = max(float(value.abs().max()) for value in expected.values())
        assert distance(found, expected) < 1e-5 * scale

    @pytest.mark.parametrize("size", [{"micro_batch_size": 16}, {"micro_batch_size": 3}, {"micro_batch_tokens": 150}])
    def test_gold_solutions_add_their_gradient(
        self,
        make_module: MakeModule,
        make_trainer: MakeTrainer,
        task: Task,
        rollout: Episodes,
        gold: Sequences,
        shared_policy: LlamaForCausalLM,
        size: dict[str, int],
    ) -> None:
        one = dataclasses.replace(task, gold=task.gold[:1])  # whichever is drawn, it is this one
        data = PromptDataModule(one, PromptOptions(4))
        found = []
        for ptx_coef in (0.0, 0.3):
            gradients, recorder = Gradients(), Recorder()
            module = make_module(minibatch_size=16, max_grad_norm=1e9, ptx_coef=ptx_coef, ptx_batch_size=5, **size)
            make_trainer(Replay(rollout), gradients, recorder).fit(module, data)
            found.append(gradients.steps[0])
        names, parameters = zip(*shared_policy.named_parameters(), strict=True)
        loss = demonstration_loss(shared_policy, gold.rows(torch.tensor([0]))).mean()
        of_gold = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
        expected = {name: value + 0.3 * of_gold[name] for name, value in found[0].items()}
        assert distance(found[0], expected) > 1e-2
        assert distance(found[1], expected) < 1e-5
        assert recorder.curves[0]["ppo/ptx_loss"] == pytest.approx(float(loss.detach()), rel=1e-4)

    @pytest.mark.parametrize("size", [{"micro_batch_size": 1}, {"micro_batch_size": 3}, {"micro_batch_tokens": 150}])
    def test_micro_batches_change_nothing(
        self,
        make_module: MakeModule,
        make_trainer: MakeTrainer,
        data: PromptDataModule,
        rollout: Episodes,
        size: dict[str, int],
    ) -> None:
        ends = []
        for micro in ({"micro_batch_size": 16}, size):
            module = make_module(**micro, inner_epochs=2, learning_rate=2e-5, value_learning_rate=2e-5)
            before = state(module.model)
            make_trainer(Replay(rollout)).fit(module, data)
            ends.append(state(module.model))
            assert distance(before, ends[-1]) > 2e-5
        assert distance(*ends) < 1e-6

    def test_gradients_are_clipped_group_by_group(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, rollout: Episodes
    ) -> None:
        gradients = Gradients()
        make_trainer(Replay(rollout), gradients).fit(make_module(max_grad_norm=1e-3), data)
        for step in gradients.steps:
            norm = torch.stack([gradient.square().sum() for gradient in step.values()]).sum().sqrt()
            assert float(norm) == pytest.approx(1e-3, rel=1e-3)

    def test_the_norms_of_gradients_are_told_as_they_were_before(
        self,
        make_module: MakeModule,
        make_trainer: MakeTrainer,
        data: PromptDataModule,
        rollout: Episodes,
        recorder: Recorder,
    ) -> None:
        found = []
        for allowed in (1e9, 1e-3):
            gradients = Gradients()
            module = make_module(max_grad_norm=allowed, minibatch_size=99)
            make_trainer(Replay(rollout), gradients, recorder).fit(module, data)
            ((step,), curves) = gradients.steps, recorder.curves[-1]
            found.append(curves["ppo/policy_grad_norm"])
            assert curves["ppo/value_grad_norm"] > 0
            if allowed == 1e9:
                norm = torch.stack([gradient.square().sum() for gradient in step.values()]).sum().sqrt()
                assert found == [pytest.approx(float(norm))]
        assert found[1] == pytest.approx(found[0])

    @pytest.mark.parametrize(("inner_epochs", "minibatch_size", "steps"), [(1, 8, 2), (3, 5, 12), (2, 99, 2)])
    def test_takes_a_step_a_minibatch(
        self,
        make_module: MakeModule,
        make_trainer: MakeTrainer,
        data: PromptDataModule,
        inner_epochs: int,
        minibatch_size: int,
        steps: int,
    ) -> None:
        trainer = make_trainer()
        trainer.fit(make_module(inner_epochs=inner_epochs, minibatch_size=minibatch_size), data)
        assert trainer.global_step == steps

    @pytest.mark.parametrize(
        "options",
        [
            {"advantage": "group_relative", "kl_place": "loss", "kl_estimator": "k3"},
            {"advantage": "rloo", "kl_coef": 0.0},
            {"reduction": "sum", "dual_clip": 3.0, "value_clip": None, "entropy_coef": 0.01},
            {"whiten": False, "gamma": 0.9, "lam": 0.5, "schedule": "linear", "warmup": 1},
        ],
        ids=["GRPO", "RLOO", "token sums", "discounted"],
    )
    def test_variants_run_with_the_filter(
        self,
        make_module: MakeModule,
        make_trainer: MakeTrainer,
        data: PromptDataModule,
        recorder: Recorder,
        options: dict[str, Any],
    ) -> None:
        module = make_module(**options)
        before = state(module.model.policy)
        make_trainer(InfluenceFilterCallback.paper(min_survival=0.0), recorder, max_epochs=2).fit(module, data)
        assert changed(before, state(module.model.policy))
        assert len(recorder.curves) == 2
        assert all(torch.isfinite(torch.tensor(list(curves.values()))).all() for curves in recorder.curves)

    @pytest.mark.parametrize(
        ("options", "rates"),
        [
            ({}, [1.0, 1.0, 1.0, 1.0]),
            ({"warmup": 3}, [0.25, 0.5, 0.75, 1.0]),
            ({"schedule": "linear"}, [1.0, 0.775, 0.55, 0.325]),
        ],
    )
    def test_learning_rates_follow_the_schedule_iteration_by_iteration(
        self,
        make_module: MakeModule,
        make_trainer: MakeTrainer,
        data: PromptDataModule,
        options: dict[str, Any],
        rates: list[float],
    ) -> None:
        class Rates(Gradients):
            def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
                self.steps.append({group["name"]: group["lr"] for group in optimizer.param_groups})

        seen = Rates()
        module = make_module(minibatch_size=16, learning_rate=1e-4, value_learning_rate=1e-3, **options)
        make_trainer(seen, max_epochs=4).fit(module, data)
        assert [step["policy"] for step in seen.steps] == pytest.approx([1e-4 * rate for rate in rates])
        assert [step["value"] for step in seen.steps] == pytest.approx([1e-3 * rate for rate in rates])


RLOO = {"advantage": "rloo", "kl_coef": 0.0, "value_coef": 0.0}


class TestWithoutACritic:
    """GRPO and RLOO compare a prompt's own samples: without a value loss nothing of a critic is asked or trained."""

    def test_it_is_not_asked_and_costs_nothing(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, monkeypatch: Any
    ) -> None:
        def never(*_: Any) -> None:
            raise AssertionError("the critic was asked")

        module = make_module(**RLOO)
        monkeypatch.setattr(module.model, "values", never)
        before = state(module.model)
        trainer = make_trainer(max_epochs=2)
        trainer.fit(module, data)
        assert {name for name in trainer.callback_metrics if name.endswith("grad_norm")} == {"ppo/policy_grad_norm"}
        after = state(module.model)
        moved = {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
        assert moved == {"policy"}
        (optimizer,) = trainer.optimizers
        policy = list(module.model.policy.parameters())
        assert {id(one) for one in optimizer.state} <= {id(one) for one in policy}

    def test_the_policy_learns_what_it_learns_with_an_idle_one(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        ends = []
        for coef in (0.0, 1e-30):  # a loss of nothing, whose gradient is nothing, and a critic beside it
            L.seed_everything(0, verbose=False)
            module = make_module(**{**RLOO, "value_coef": coef})
            make_trainer(max_epochs=2).fit(module, data)
            ends.append(state(module.model.policy))
        assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


class TestPolicyLosses:
    def test_are_the_papers(self, shifted: PPOModule, rollout: Episodes) -> None:
        expected = torch.stack([ppo_loss_by_hand(shifted.model.policy, rollout, row) for row in range(len(rollout))])
        found = shifted.policy_losses(shifted.model.policy, rollout)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    def test_hold_the_divergence_and_the_entropy_where_asked(
        self, make_module: MakeModule, shifted: PPOModule, rollout: Episodes
    ) -> None:
        policy = shifted.model.policy
        plain = shifted.policy_losses(policy, rollout)
        options = {"advantage": "rloo", "kl_place": "loss", "kl_estimator": "k2", "kl_coef": 0.5, "entropy_coef": 0.1}
        found = make_module(**options).policy_losses(policy, rollout)
        for row in range(len(rollout)):
            (one,) = rollout.rows(torch.tensor([row])).chunks(1)
            logits = policy(one.input_ids).logits[0, one.prompt_ids.shape[1] - 1 : -1]
            logprobs = logits.log_softmax(-1)
            entropy = -(logprobs.exp() * logprobs).sum(-1).mean()
            gap = logprobs.gather(1, one.response_ids.T).squeeze(1) - one.reference_logprobs[0]
            expected = plain[row] + 0.5 * (gap**2 / 2).mean() - 0.1 * entropy
            torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)


class TestEnginesThatStripTheEnd:
    def test_a_response_without_a_token_is_dropped_by_name_and_the_others_learned_from(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, recorder: Recorder
    ) -> None:
        class Strips(CountingEngine):
            """As servers do that leave out the token that ended a response."""

            def generate(self, policy: Any, prompts: Sequence[str], sampling: Sampling) -> Any:
                drawn = super().generate(policy, prompts, sampling)
                mask = drawn.response_mask & (drawn.response_ids != self.tokenizer.eos_token_id)
                mask[::5] = False
                return dataclasses.replace(drawn, response_mask=mask)

        module = make_module(micro_batch_size=1)
        module.engine = Strips(module.tokenizer)
        make_trainer(InfluenceFilterCallback(min_survival=0.0), recorder, max_epochs=2).fit(module, data)
        for episodes in recorder.episodes:
            empty = episodes.dropped[0]
            assert set(empty.extras["reason"]) == {"the response has no token that could be learned from"}
            assert not empty.lengths.any()
            assert len(empty) >= 4
            assert (episodes.lengths > 0).all()
            assert episodes.finished.any()
        assert all(curves["ppo/mismatch"] < 1e-6 for curves in recorder.curves)


def test_in_float64_it_trains_in_float64(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, recorder: Recorder
) -> None:
    torch.manual_seed(0)
    module = make_module()
    trainer = make_trainer(InfluenceFilterCallback(min_survival=0.0), recorder, precision="64-true", max_epochs=2)
    trainer.fit(module, data)
    assert recorder.episodes[0].old_logprobs.dtype == torch.float64
    assert {value.dtype for value in module.model.parameters()} == {torch.float64}
    assert recorder.curves[0]["ppo/mismatch"] < 1e-12


class TestBrokenPolicies:
    def fit(
        self, module: PPOModule, trainer: Any, data: PromptDataModule, recorder: Recorder
    ) -> list[dict[str, float]]:
        before = state(module.model.policy)
        trainer.fit(module, data)
        self.moved = changed(before, state(module.model.policy))
        return recorder.curves

    def test_one_that_never_ends_is_counted_and_earns_nothing(
        self,
        make_module: MakeModule,
        make_trainer: MakeTrainer,
        data: PromptDataModule,
        recorder: Recorder,
        policy: LlamaForCausalLM,
    ) -> None:
        module = make_module(push_eos(policy, -1e4), sampling=Sampling(max_new_tokens=6))
        trainer = make_trainer(InfluenceFilterCallback.paper(min_survival=0.0), recorder, limit_val_batches=1)
        (curves,) = self.fit(module, trainer, data, recorder)
        assert curves["reward/unfinished"] == 1.0
        assert curves["reward/mean"] == 0.0
        assert curves["reward/length"] == 6.0

    def test_one_that_ends_at_once(
        self,
        make_module: MakeModule,
        make_trainer: MakeTrainer,
        data: PromptDataModule,
        recorder: Recorder,
        policy: LlamaForCausalLM,
    ) -> None:
        module = make_module(push_eos(policy))
        trainer = make_trainer(InfluenceFilterCallback.paper(min_survival=0.0), recorder, limit_val_batches=1)
        (curves,) = self.fit(module, trainer, data, recorder)
        assert curves["reward/unfinished"] == 0.0
        assert curves["reward/length"] == 1.0
        assert curves["accuracy/em"] == trainer.callback_metrics["val/em"] == 0.0

    def test_nan_stops_the_training_and_says_why(
        self,
        make_module: MakeModule,
        make_trainer: MakeTrainer,
        data: PromptDataModule,
        recorder: Recorder,
        policy: LlamaForCausalLM,
    ) -> None:
        torch.nn.init.constant_(policy.model.norm.weight, NAN)
        module = make_module(policy)
        trainer = make_trainer(recorder, max_epochs=3)
        with pytest.warns(UserWarning, match="training ends after this iteration: no episode has finite"):
            assert len(self.fit(module, trainer, data, recorder)) == 1
        assert module.stopping_reason_message is not None
        assert module.stopping_reason_message.startswith("no episode has finite log-probabilities")
        assert trainer.global_step == 0

    def test_a_new_fit_forgets_why_the_last_one_stopped(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        module = make_module()
        module.stopping_reason_message = "broken"
        make_trainer().fit(module, data)
        assert module.stopping_reason_message is None


class TestRefusals:
    def test_a_policy_in_half_precision(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        module = make_module()
        module.model.policy.bfloat16()
        with pytest.raises(UsageError, match=r"policy = 'torch.bfloat16': .* load the model in torch.float32"):
            make_trainer().fit(module, data)

    def test_trainer_precision_that_trains_in_half(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        with pytest.raises(UsageError, match=r"policy = 'torch.bfloat16'"):
            make_trainer(precision="bf16-true").fit(make_module(), data)

    @pytest.mark.parametrize("options", [{}, {"ptx_coef": 1.0}], ids=str)
    def test_prompts_without_gold_solutions(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, options: dict[str, float]
    ) -> None:
        callbacks = [] if options else [InfluenceFilterCallback.paper()]
        with pytest.raises(UsageError, match=r"datamodule = 'NoneType': .* fit with a PromptDataModule"):
            make_trainer(*callbacks).fit(make_module(**options), [{"prompt": ["2?"], "answer": ["2"]}])

    @pytest.mark.parametrize("split", ["train", "validation", "test"])
    def test_a_prompt_without_room_for_its_response_is_told_before_the_first_rollout(
        self,
        make_module: MakeModule,
        make_trainer: MakeTrainer,
        task: Task,
        engine: CountingEngine,
        split: str,
    ) -> None:
        rows = list(getattr(task, split))
        rows[1] = {**rows[1], "prompt": "What is " + "1 + " * 40 + "1?\n"}
        changed: dict[str, Any] = {split: rows}
        data = PromptDataModule(dataclasses.replace(task, **changed))
        found = rf"task\.{split}\[1\] = 'What is .* tokens.* context.*: remove it or lower sampling\.max_new_tokens"
        with pytest.raises(UsageError, match=found):
            make_trainer(num_sanity_val_steps=1, limit_val_batches=1).fit(make_module(engine=engine), data)
        assert engine.calls == 0

    def test_training_on_the_greedy_responses_alone(self, make_module: MakeModule) -> None:
        with pytest.raises(UsageError, match=r"sampling\.temperature = 0\.0: PPO learns from what is drawn"):
            make_module(sampling=Sampling(temperature=0.0))

    def test_nucleus_sampling_in_training(self, make_module: MakeModule) -> None:
        with pytest.raises(UsageError, match=r"sampling\.top_p = 0\.9: PPO's ratios need the full distribution"):
            make_module(sampling=Sampling(top_p=0.9))


class TestEvaluation:
    def test_judges_k_answers_a_prompt_over_the_whole_split(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, task: Task
    ) -> None:
        """Answers by decree: of six prompts, two right twice (one unfaithfully), one right once, three never; and
        four of the most likely ones. The reward believes nine of the twelve."""

        class Fixed(CountingEngine):
            def generate(self, policy: Any, prompts: Sequence[str], sampling: Sampling) -> Any:
                given = texts if sampling.temperature else greedy
                ids = [[*self.tokenizer(given.pop(0))["input_ids"], self.tokenizer.eos_token_id] for _ in prompts]
                width = max(map(len, ids))
                padded = torch.tensor([row + [self.tokenizer.pad_token_id] * (width - len(row)) for row in ids])
                drawn = super().generate(policy, prompts, Sampling(max_new_tokens=1))
                return type(drawn)(drawn.prompt_ids, drawn.prompt_mask, padded, self._until_eos(padded))

        texts, greedy = [], []
        for place, row in enumerate(task.test):
            greedy.append(row["solution"] if place < 4 else "?")
            right, shortcut, wrong = row["solution"], f"#### {row['answer']}", "#### 99"
            texts += {0: [right, right], 1: [shortcut, shortcut], 2: [wrong, right]}.get(place, [wrong, "?"])
        asked = EvaluationOptions(samples=2, reward=True)
        module = make_module(
            evaluation=asked, reward=lambda completions, **_: [float("#" in one) for one in completions]
        )
        module.engine = Fixed(module.tokenizer)
        (scores,) = make_trainer().test(module, data, verbose=False)
        assert scores == {
            "test/em": pytest.approx(5 / 12),
            "test/em_greedy": pytest.approx(4 / 6),
            "test/mv": pytest.approx(2 / 6),  # a tie goes to the answer seen first
            "test/pass@k": pytest.approx(3 / 6),
            "test/false_positive": pytest.approx(2 / 5),
            "test/unverifiable": 0.0,
            "test/hacked": 0.0,
            "test/unfinished": 0.0,
            "test/reward": pytest.approx(9 / 12),
        }

    def test_how_often_it_judges_changes_nothing_that_is_learned(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        ends = []
        for options in ({"limit_val_batches": 0}, {"limit_val_batches": 1, "num_sanity_val_steps": 1}):
            torch.manual_seed(0)
            module = make_module()
            make_trainer(max_epochs=2, **options).fit(module, data)
            ends.append(state(module.model))
        assert not changed(*ends)

    def test_each_batch_draws_numbers_of_its_own_and_a_second_evaluation_the_same(
        self, make_module: MakeModule, make_trainer: MakeTrainer, task: Task
    ) -> None:
        answers: list[list[str]] = []

        class Look(L.Callback):
            def on_answers(self, trainer: L.Trainer, pl_module: L.LightningModule, columns: Any) -> None:
                answers.append(columns["response"])

        same = dataclasses.replace(task, test=task.test[:1] * 4)  # two batches of one and the same problem
        data, module = PromptDataModule(same, PromptOptions(evaluation_batch_size=2)), make_module()
        for _ in range(2):
            make_trainer(Look()).test(module, data, verbose=False)
        first, second, *again = answers
        assert first != second
        assert [first, second] == again

    def test_one_policy_has_one_figure_whatever_was_drawn_before(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        answers: list[list[str]] = []

        class Look(L.Callback):
            def on_answers(self, trainer: L.Trainer, pl_module: L.LightningModule, columns: Any) -> None:
                answers.append(columns["response"])

        for seed, drawn in ((0, 1), (0, 2), (1, 1)):
            module = make_module()
            module.evaluation = type(module.evaluation)(samples=2, seed=seed)
            torch.manual_seed(drawn)
            make_trainer(Look()).test(module, data, verbose=False)
        size = len(answers) // 3
        first, again, another = (answers[start : start + size] for start in range(0, 3 * size, size))
        assert first == again
        assert first != another

    def test_a_share_of_nothing_has_no_point(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        module = make_module(sampling=Sampling(max_new_tokens=1))  # nothing ends, and so nothing is right
        for _ in range(2):  # and nothing of one test is left for the next
            (scores,) = make_trainer().test(module, data, verbose=False)
            shares = ("em", "em_greedy", "mv", "pass@k", "hacked", "unfinished")
            assert set(scores) == {f"test/{name}" for name in shares}
            assert scores["test/em"] == 0.0

    def test_stopping_is_said_where_it_happens(self, make_module: MakeModule, make_trainer: MakeTrainer) -> None:
        module = make_module()
        module.trainer = make_trainer()
        with pytest.warns(UserWarning, match="training ends after this iteration: out of tea"):
            module.stop("out of tea")
        assert module.stopping_reason_message == "out of tea"

    def test_draws_with_its_own_options(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        seen: list[Sampling] = []

        class Look(CountingEngine):
            def generate(self, policy: Any, prompts: Sequence[str], sampling: Sampling) -> Any:
                seen.append(sampling)
                return super().generate(policy, prompts, sampling)

        module = make_module(sampling=Sampling(temperature=1.3, max_new_tokens=7))
        module.engine = Look(module.tokenizer)
        module.evaluation = type(module.evaluation)(samples=2, temperature=0.5, top_p=0.8)
        make_trainer().test(module, data, verbose=False)
        drawn = Sampling(temperature=0.5, max_new_tokens=7, top_p=0.8)
        assert set(seen) == {drawn, dataclasses.replace(drawn, temperature=0.0)}


def test_every_tag_of_the_design_reaches_tensorboard(
    tmp_path: Any, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="ppo")
    trainer = make_trainer(
        InfluenceFilterCallback.paper(min_survival=0.0), logger=logger, max_epochs=3, limit_val_batches=1
    )
    module, check = make_module(), make_module().judge.check
    module.judge = Judge(lambda prompts, **more: {**check(prompts, **more), "correct": [True] * len(prompts)})
    trainer.fit(module, data)
    events = EventAccumulator(str(tmp_path / "ppo"), size_guidance={"histograms": 0}).Reload()
    assert set(events.Tags()["scalars"]) >= TAGS
    assert events.Tags()["histograms"] == ["influence/scores"]
    assert len(events.Scalars("ppo/policy_loss")) == 3
    assert len(events.Histograms("influence/scores")) == 3


def test_pinned_run(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, recorder: Recorder
) -> None:
    """If this fails, the algorithm has changed: on purpose, and the numbers are to be renewed, or by mistake."""
    module, callbacks = (
        make_module(inner_epochs=2),
        (Reseed(), InfluenceFilterCallback.paper(min_survival=0.0), recorder),
    )
    make_trainer(*callbacks, max_epochs=3).fit(module, data)
    expected = {
        "reward/mean": [0.0625, 0.3125, 0.5625],
        "influence/kept_fraction": [0.3125, 0.625, 0.4375],
        "ppo/policy_loss": [0.128522, -0.223542, -0.106863],
        "ppo/value_loss": [0.0, 0.145961, 0.206231],
    }
    for name, values in expected.items():
        assert [curves[name] for curves in recorder.curves] == pytest.approx(values, rel=1e-3, abs=1e-6), name
