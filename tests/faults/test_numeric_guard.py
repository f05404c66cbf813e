"""Faults put into a real training, one after another: each is named, and survived or stopped as documented."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from parts import GivenScores, MakeModule, MakeTrainer, Recorder, is_odd, push_eos, state
from torch import Tensor

from ippo import PPOModule, PromptDataModule
from ippo.callbacks import InfluenceFilterCallback, IterationCheckpoint, NumericGuard
from ippo.errors import UsageError
from ippo.influence import ValidationDirection
from ippo.models import response_logprobs
from ippo.ppo.guards import NumericWarning, excerpt
from ippo.ppo.logprobs import LogprobPass
from ippo.ppo.objective import PolicyObjective
from ippo.sft import demonstration_loss

NAN, INF = float("nan"), float("inf")
ROW = 5  # the episode of each iteration that is hit


def poison(values: Tensor, by: float, row: int = ROW) -> Tensor:
    """[n, ...] with one number of one row replaced."""
    values = values.clone()
    values.view(len(values), -1)[row, 0] = by
    return values


def rewarding(value: float) -> Callable[..., list[float]]:
    def reward(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float]:
        return [value if row == ROW else one for row, one in enumerate(is_odd(prompts, completions))]

    return reward


def in_rollouts(function: Callable[..., Tensor], change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """What the models say changed while nothing is differentiated, which is while rolling out."""
    return lambda *args: function(*args) if torch.is_grad_enabled() else change(function(*args))


class LookBackFault(L.Callback):
    """Log-probabilities of the rollout that the policy did not sample by."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        self.change = change

    def on_logprob_pass(self, trainer: L.Trainer, pl_module: Any, look: LogprobPass) -> LogprobPass:
        logprobs = response_logprobs(pl_module.model.policy, look.sequences)
        return LogprobPass(look.sequences, self.change(logprobs))


class GradientFault(L.Callback):
    """Puts a number into the gradient of some of the steps, whatever the episodes were."""

    def __init__(self, by: float, steps: Sequence[int]) -> None:
        self.by, self.steps, self.seen = by, steps, -1

    def on_before_optimizer_step(self, *_: Any) -> None:
        assert self.seen not in self.steps, "a step with such a gradient was taken"

    def on_after_backward(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.seen += 1
        if self.seen in self.steps:
            pl_module.model.policy.lm_head.weight.grad.view(-1)[3] = self.by


class Overflow(PolicyObjective):
    """A loss that overflows for one text, when differentiated."""

    def losses_of(self, prompts: Sequence[str], losses: Tensor) -> Tensor:
        hit = torch.tensor([prompt == HIT for prompt in prompts])
        return torch.where(hit, losses * 1e38 * 1e38, losses)

    def of_logprobs(self, logprobs: Tensor, episodes: Any) -> Tensor:
        return self.losses_of(episodes.prompts, super().of_logprobs(logprobs, episodes))


HIT = ""


@pytest.fixture
def run(make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, tmp_path: Path) -> Any:
    """A few iterations with faults; gives the module, what was told, the guard and the curves."""

    def fit(
        *callbacks: L.Callback,
        prepare: Callable[[PPOModule], None] = lambda _: None,
        bad: int | None = 9,
        iterations: int = 3,
        **options: Any,
    ) -> tuple[PPOModule, str, NumericGuard, Recorder]:
        module, guard, recorder = make_module(**options), NumericGuard(max_bad_steps=bad), Recorder()
        prepare(module)
        checkpoint = IterationCheckpoint(tmp_path / "checkpoints", "{epoch}")
        trainer = make_trainer(
            *callbacks, guard, recorder, checkpoint, max_epochs=iterations, enable_checkpointing=True
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.fit(module, data)
        told = [str(one.message) for one in caught if one.category is NumericWarning]
        assert all(torch.isfinite(value).all() for value in state(module.model).values())
        return module, "\n".join(told), guard, recorder

    return fit


def values_fault(change: Callable[[Tensor], Tensor]) -> Callable[[PPOModule], None]:
    def prepare(module: PPOModule) -> None:
        module.model.values = in_rollouts(module.model.values, change)  # type: ignore[method-assign]

    return prepare


def reference_fault(change: Callable[[Tensor], Tensor]) -> Callable[[PPOModule], None]:
    def prepare(module: PPOModule) -> None:
        module.model.reference_logprobs = in_rollouts(module.model.reference_logprobs, change)  # type: ignore[method-assign]

    return prepare


@pytest.mark.parametrize(
    ("callbacks", "options"),
    [
        ([], {"reward": rewarding(NAN)}),
        ([], {"reward": rewarding(-INF)}),
        ([LookBackFault(lambda logprobs: poison(logprobs, NAN))], {}),
        ([LookBackFault(lambda logprobs: poison(logprobs, -INF))], {}),
        ([], {"prepare": reference_fault(lambda logprobs: poison(logprobs, NAN))}),
        ([], {"prepare": values_fault(lambda values: poison(values, INF))}),
        ([InfluenceFilterCallback.paper(scorer=GivenScores(*[[1.0] * ROW + [NAN] + [1.0] * 10] * 3))], {}),
    ],
    ids=["reward NaN", "reward Inf", "log-prob NaN", "log-prob Inf", "reference NaN", "value Inf", "score NaN"],
)
def test_an_episode_with_such_a_number_is_left_out_counted_and_named(
    run: Any, callbacks: list[L.Callback], options: dict[str, Any]
) -> None:
    _, told, guard, recorder = run(*callbacks, micro_batch_size=16, **options)
    for iteration, episodes in enumerate(recorder.episodes):
        (dropped,) = episodes.dropped
        assert f"iteration {iteration}: {dropped.extras['reason'][0]}; left out" in told
        assert excerpt(dropped.prompts[0], dropped.responses[0]) in told
        assert "not finite" in dropped.extras["reason"][0]
    assert [one["guard/episodes"] for one in recorder.curves] == [1.0] * 3
    assert guard.bad_in_a_row == 3


@pytest.mark.parametrize("by", [NAN, INF], ids=["gradient NaN", "gradient Inf"])
def test_a_step_on_such_a_gradient_is_not_taken(run: Any, by: float) -> None:
    module, told, guard, recorder = run(GradientFault(by, steps=[2]))
    assert "iteration 1: a gradient is not finite; step skipped (no episode of this rank by itself" in told
    assert [one["guard/skipped_steps"] for one in recorder.curves] == [0.0, 1.0, 0.0]
    assert module.trainer.global_step == 5
    assert guard.bad_in_a_row == 0


def test_the_episode_behind_such_a_gradient_is_named(run: Any, data: PromptDataModule) -> None:
    global HIT
    HIT = str(next(iter(data.train_dataloader()))["prompt"][1])

    def prepare(module: PPOModule) -> None:
        module.objective = Overflow(module.ppo, 1.0)

    _, told, _, recorder = run(prepare=prepare)
    assert recorder.curves[0]["guard/skipped_steps"] >= 1
    assert "step skipped\n" in told
    assert repr(HIT) in told
    assert told.count(" -> ") == told.count(repr(HIT))  # and nobody else


def test_too_many_such_iterations_in_a_row_stop_the_run_with_a_checkpoint(run: Any, tmp_path: Path) -> None:
    _, told, guard, recorder = run(GradientFault(NAN, steps=range(99)), bad=2)
    assert "training stops, numbers that are not finite, 2 iterations in a row" in told
    assert guard.stopping_reason_message == "numbers that are not finite, 2 iterations in a row"
    assert len(recorder.curves) == 2
    (path,) = (tmp_path / "checkpoints").glob("*.ckpt")
    kept = torch.load(path, weights_only=True)
    assert kept["epoch"] == 1
    assert all(torch.isfinite(value).all() for value in kept["state_dict"].values())


@pytest.mark.parametrize(
    ("value", "words"),
    [(NAN, "reward is not finite"), (3e38, "an advantage is not finite: a reward or value is too large")],
    ids=["all rewards NaN", "rewards overflow"],
)
def test_a_buffer_without_a_usable_episode_stops_the_run(run: Any, value: float, words: str) -> None:
    def reward(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float]:
        return [value] * len(completions)

    module, told, _, recorder = run(reward=reward)
    assert words in told
    assert "and 13 more" in told
    assert module.stopping_reason_message.startswith("no episode has finite")
    assert len(recorder.curves) == 1
    assert module.trainer.global_step == 0


def test_scores_that_are_all_nan_leave_the_policy_as_it_is(run: Any) -> None:
    _, told, _, recorder = run(InfluenceFilterCallback.paper(scorer=GivenScores(*[[NAN] * 16] * 3), min_survival=0.0))
    assert "score is not finite; left out" in told
    assert [one["guard/episodes"] for one in recorder.curves] == [16.0] * 3


class TestRefusals:
    def test_a_direction_that_is_not_finite_is_told_before_the_first_rollout(
        self, run: Any, make_module: MakeModule
    ) -> None:
        direction = {name: torch.full_like(value, NAN) for name, value in state(make_module().model.policy).items()}
        with pytest.raises(UsageError, match=r"direction\[.*\] = 'NaN or Inf': mend the reference loss"):
            run(InfluenceFilterCallback.paper(direction=direction))

    def test_one_that_breaks_later_ends_the_run_and_leaves_its_checkpoint(
        self, run: Any, gold: Any, tmp_path: Path
    ) -> None:
        calls = []

        def loss(policy: Any, batch: Any) -> Tensor:
            calls.append(1)
            return demonstration_loss(policy, batch) * (NAN if len(calls) > 2 else 1.0)

        with pytest.raises(UsageError, match="mend the reference loss"):
            run(InfluenceFilterCallback.paper(direction=ValidationDirection([gold], loss), min_survival=0.0))
        assert [torch.load(path, weights_only=True)["epoch"] for path in tmp_path.glob("checkpoints/*.ckpt")] == [0]

    def test_a_reward_that_does_not_answer_for_every_episode(self, run: Any) -> None:
        with pytest.raises(UsageError, match="reward lambda = '3 rewards': return one number for each of 16"):
            run(reward=lambda **_: [1.0] * 3)

    @pytest.mark.parametrize("options", [{"max_bad_steps": 0}, {"patience": 0}, {"texts": -1}])
    def test_options(self, options: dict[str, Any]) -> None:
        with pytest.raises(UsageError, match="use"):
            NumericGuard(**options)


class EosFromTheSecondIteration(L.Callback):
    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.current_epoch == 1:
            push_eos(pl_module.model.policy, 50.0)


@pytest.mark.parametrize(
    ("callbacks", "options", "curve", "setting"),
    [
        ([], {"prepare": reference_fault(lambda logprobs: logprobs + 1.0)}, "ppo/kl", "sampling.temperature"),
        ([LookBackFault(lambda logprobs: logprobs + 0.1)], {}, "ppo/mismatch", "one_pass=False"),
        (
            [],
            {"prepare": values_fault(lambda values: 9 * torch.randn_like(values))},
            "ppo/explained_variance",
            "ppo.value_learning_rate",
        ),
        ([EosFromTheSecondIteration()], {}, "ppo/entropy", "ppo.entropy_coef"),
        (
            [],
            {"reward": lambda completions, **_: [0.0] * len(completions), "advantage": "rloo", "kl_coef": 0.0},
            "reward/zero_variance",
            "ppo.samples_per_prompt",
        ),
    ],
    ids=["negative divergence", "ratios off 1", "bad critic", "entropy collapse", "groups of equal rewards"],
)
def test_a_curve_that_a_healthy_run_would_not_show_is_told_once_with_cause_and_setting(
    run: Any, callbacks: list[L.Callback], options: dict[str, Any], curve: str, setting: str
) -> None:
    _, told, guard, _ = run(*callbacks, iterations=5, **{"reward": is_odd, **options})
    assert told.count(f"{curve} = ") == 1
    assert "(3 iterations in a row)" in told
    assert "Likely" in told
    assert setting in told
    assert guard.bad_in_a_row == 0


def test_a_healthy_run_is_told_nothing(run: Any) -> None:
    _, told, _, recorder = run()
    assert told == ""
    assert recorder.curves[-1]["guard/episodes"] == recorder.curves[-1]["guard/skipped_steps"] == 0.0
