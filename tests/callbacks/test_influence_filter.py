from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from parts import CountingEngine, GivenScores, MakeModule, MakeTrainer, Recorder, push_eos, state
from transformers import LlamaForCausalLM

from ippo import Episodes, PromptDataModule
from ippo.callbacks import InfluenceFilterCallback
from ippo.callbacks.influence.curves import kept_by_class
from ippo.data import Task
from ippo.data.prompts import PromptOptions
from ippo.errors import UsageError
from ippo.influence import ExactScorer, PositiveScore, Uniform, ValidationDirection
from ippo.rollout.sampling import Sampling
from ippo.rollout.sequences import Sequences
from ippo.sft import demonstration_loss

NAN = float("nan")
LOW, HIGH = [1.0, -1.0, -1.0, -1.0], [1.0, 1.0, 1.0, -1.0]  # survival 1/4 and 3/4


@pytest.fixture
def data(task: Task) -> PromptDataModule:
    """Two prompts an iteration: with two samples each, four episodes."""
    return PromptDataModule(task, PromptOptions(prompts_per_iteration=2))


def given(*scores: list[float], **options: Any) -> InfluenceFilterCallback:
    return InfluenceFilterCallback.paper(scorer=GivenScores(*scores), **options)


class TestVerdict:
    def test_survivors_reach_the_update_with_their_weights_and_the_others_with_their_reasons(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, recorder: Recorder
    ) -> None:
        callback = given([3.0, -1.0, NAN, 1.0])
        make_trainer(callback, recorder).fit(make_module(samples_per_prompt=2), data)
        (episodes,) = recorder.episodes
        assert episodes.groups.tolist() == [0, 1]
        assert episodes.weights.tolist() == [1.5, 0.5]
        assert episodes.extras["score"] == [3.0, 1.0]
        (dropped,) = episodes.dropped
        assert dropped.groups.tolist() == [0, 1]
        assert dropped.extras["reason"] == ["score <= 0", "score is not finite"]
        assert dropped.extras["score"][0] == -1.0
        assert dropped.extras["score"][1] != dropped.extras["score"][1]

    def test_keep_and_weight_are_the_users(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, recorder: Recorder
    ) -> None:
        class All(PositiveScore):
            def __call__(self, scores: Any, rewards: Any, groups: Any) -> Any:
                return scores > -1e9

        callback = given([3.0, -1.0, -2.0, 1.0], keep=All(), weight=Uniform())
        make_trainer(callback, recorder).fit(make_module(samples_per_prompt=2), data)
        assert recorder.episodes[0].weights.tolist() == [1.0] * 4

    def test_default_scores_are_gradients_of_the_modules_loss_along_its_gold_solutions(
        self,
        make_module: MakeModule,
        make_trainer: MakeTrainer,
        data: PromptDataModule,
        recorder: Recorder,
        gold: Sequences,
    ) -> None:
        class Score(L.Callback):
            """The same by hand, at the same moment."""

            def on_rollout_end(self, trainer: L.Trainer, pl_module: Any, episodes: Episodes) -> None:
                direction = ValidationDirection([gold], demonstration_loss)
                scorer = ExactScorer("loop")
                self.scores = scorer.score(pl_module.model.policy, pl_module.policy_losses, [episodes], direction)

        by_hand = Score()
        make_trainer(by_hand, InfluenceFilterCallback.paper(batch_size=3), recorder).fit(make_module(), data)
        table = recorder.episodes[0].records()
        assert (by_hand.scores > 0).any()
        assert (by_hand.scores < 0).any()
        expected = sorted(by_hand.scores.tolist())
        assert sorted(table["score"]) == pytest.approx(expected, rel=1e-3, abs=1e-5 * max(map(abs, expected)))
        assert all(kept == (score > 0) for kept, score in zip(table["kept"], table["score"], strict=True))

    def test_direction_and_losses_may_be_the_users(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, recorder: Recorder
    ) -> None:
        module = make_module(samples_per_prompt=2)
        direction = {name: torch.zeros_like(value) for name, value in module.model.policy.named_parameters()}
        direction["model.norm.weight"][0] = 1.0

        def losses(policy: Any, episodes: Episodes) -> torch.Tensor:
            return policy.model.norm.weight[0] * (episodes.lengths - 10.5)

        callback = InfluenceFilterCallback.paper(direction=direction, losses=losses, on_empty="keep_all")
        make_trainer(callback, recorder).fit(module, data)
        for part in (recorder.episodes[0], *recorder.episodes[0].dropped):
            assert part.extras["score"] == pytest.approx((part.lengths - 10.5).tolist())


class TestWeights:
    """``action="weight"`` leaves every episode in place, and PPO's mean is over those whose weight is above zero."""

    @staticmethod
    def trained(
        make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, iterations: int, *callbacks: Any
    ) -> Any:
        torch.manual_seed(0)
        module = make_module(samples_per_prompt=2, minibatch_size=99, inner_epochs=2)
        make_trainer(*callbacks, max_epochs=iterations).fit(module, data)
        return state(module.model.policy)

    def test_weighing_trains_as_dropping_does(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, recorder: Recorder
    ) -> None:
        ends = [
            self.trained(make_module, make_trainer, data, 1, given([3.0, -1.0, -2.0, 1.0], action=action), recorder)
            for action in ("drop", "weight")
        ]
        assert [len(one) for one in recorder.episodes] == [2, 4]
        for name, dropped in ends[0].items():
            torch.testing.assert_close(ends[1][name], dropped, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("action", ["drop", "weight"])
    def test_where_nothing_survives_no_step_is_taken_not_even_by_momentum(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, action: Any
    ) -> None:
        class Steps(L.Callback):
            taken = 0

            def on_before_optimizer_step(self, *_: Any) -> None:
                self.taken += 1

        steps = Steps()
        callback = given(HIGH, [-1.0] * 4, action=action, min_survival=0.0)
        self.trained(make_module, make_trainer, data, 2, callback, steps)
        assert steps.taken == 2  # both inner epochs of the first iteration


@pytest.mark.parametrize(("batch_size", "rows"), [(None, 3), (2, 2)])
def test_scores_as_many_episodes_at_a_time_as_ppo_trains_on(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, batch_size: int | None, rows: int
) -> None:
    sizes = []

    class Sizes(ExactScorer):
        def score(self, module: Any, losses: Any, batches: Any, direction: Any) -> torch.Tensor:
            sizes.extend(len(batch) for batch in batches)
            return super().score(module, losses, batches, direction)

    callback = InfluenceFilterCallback.paper(scorer=Sizes(), one_pass=False, batch_size=batch_size)
    make_trainer(callback).fit(make_module(samples_per_prompt=2, micro_batch_size=3), data)
    assert max(sizes) == rows
    assert sum(sizes) == 4


class TestASecondFit:
    def test_takes_the_gold_solutions_of_its_own_data(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, task: Task
    ) -> None:
        other = PromptDataModule(dataclasses.replace(task, gold=task.gold[:1]), data.options)
        used = InfluenceFilterCallback.paper(min_survival=0.0)
        make_trainer(used).fit(make_module(), other)
        scores = []
        for callback in (used, InfluenceFilterCallback.paper(min_survival=0.0)):
            torch.manual_seed(0)
            recorder = Recorder()
            make_trainer(callback, recorder).fit(make_module(), data)
            scores.append(recorder.episodes[0].records()["score"])
        assert scores[0] == scores[1]

    def test_forgets_why_the_last_one_stopped(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        callback = given(LOW, HIGH, min_survival=0.5, patience=1)
        for message in ("below 50% of the episodes survived, 1 iterations in a row", None):
            make_trainer(callback).fit(make_module(samples_per_prompt=2), data)
            assert callback.stopping_reason_message == message


class TestNothingSurvives:
    NONE = (-1.0, -2.0, NAN, 0.0)

    def fit(self, make_module: MakeModule, trainer: L.Trainer, data: PromptDataModule) -> tuple[bool, L.Trainer]:
        module = make_module(samples_per_prompt=2)
        before = state(module.model.policy)
        trainer.fit(module, data)
        return any(not torch.equal(now, before[name]) for name, now in state(module.model.policy).items()), trainer

    def test_skip_leaves_the_policy_as_it_was_and_goes_on(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, recorder: Recorder
    ) -> None:
        callback = given(list(self.NONE), list(self.NONE), min_survival=0.0)
        moved, _ = self.fit(make_module, make_trainer(callback, recorder, max_epochs=2), data)
        assert not moved
        assert [len(episodes) for episodes in recorder.episodes] == [0, 0]
        assert [len(episodes.dropped[0]) for episodes in recorder.episodes] == [4, 4]
        assert callback.stopping_reason_message is None

    def test_keep_all_trains_on_the_whole_buffer_alike(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, recorder: Recorder
    ) -> None:
        callback = given(list(self.NONE), min_survival=0.0, on_empty="keep_all")
        moved, _ = self.fit(make_module, make_trainer(callback, recorder), data)
        assert moved
        assert recorder.episodes[0].weights.tolist() == [1.0] * 4
        assert recorder.episodes[0].dropped == ()
        assert recorder.curves[0]["influence/kept_fraction"] == 0.0

    def test_stop_ends_the_training_and_says_why(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, recorder: Recorder
    ) -> None:
        callback = given(HIGH, list(self.NONE), HIGH, min_survival=0.0, on_empty="stop")
        with pytest.warns(UserWarning, match="training stops, no episode survived"):
            self.fit(make_module, make_trainer(callback, recorder, max_epochs=3), data)
        assert len(recorder.episodes) == 2
        assert callback.stopping_reason_message == "no episode survived"


class TestStopInTime:
    @pytest.mark.parametrize(
        ("patience", "iterations", "ran"),
        [
            (1, [HIGH, LOW, HIGH], 2),
            (2, [LOW, HIGH, LOW, LOW, HIGH], 4),  # the high one in between starts the count anew
            (3, [LOW, LOW, HIGH, LOW, LOW], 5),
        ],
    )
    def test_after_so_many_low_iterations_in_a_row(
        self,
        make_module: MakeModule,
        make_trainer: MakeTrainer,
        data: PromptDataModule,
        recorder: Recorder,
        patience: int,
        iterations: list[list[float]],
        ran: int,
    ) -> None:
        callback = given(*iterations, min_survival=0.5, patience=patience)
        trainer = make_trainer(callback, recorder, max_epochs=len(iterations))
        trainer.fit(make_module(samples_per_prompt=2), data)
        assert len(recorder.episodes) == ran
        stopped = f"below 50% of the episodes survived, {patience} iterations in a row"
        assert callback.stopping_reason_message == (stopped if ran < len(iterations) else None)

    def test_survival_at_the_threshold_is_enough(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, recorder: Recorder
    ) -> None:
        callback = given(LOW, LOW, min_survival=0.25, patience=1)
        make_trainer(callback, recorder, max_epochs=2).fit(make_module(samples_per_prompt=2), data)
        assert len(recorder.episodes) == 2

    def test_the_count_outlives_a_checkpoint(
        self,
        tmp_path: Path,
        make_module: MakeModule,
        make_trainer: MakeTrainer,
        data: PromptDataModule,
        recorder: Recorder,
    ) -> None:
        first = given(LOW, min_survival=0.5, patience=2)
        trainer = make_trainer(first)
        trainer.fit(make_module(samples_per_prompt=2), data)
        trainer.save_checkpoint(tmp_path / "one.ckpt")

        resumed = given(LOW, LOW, LOW, min_survival=0.5, patience=2)
        trainer = make_trainer(resumed, recorder, max_epochs=4)
        trainer.fit(make_module(samples_per_prompt=2), data, ckpt_path=tmp_path / "one.ckpt")
        assert len(recorder.episodes) == 1
        assert resumed.stopping_reason_message is not None

    def test_a_dry_run_leaves_nothing_to_stop_by(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        callback = InfluenceFilterCallback.paper(min_survival=1.0, dry_run=True)
        make_trainer(callback, max_epochs=3).fit(make_module(), data)
        assert callback.batches == 3
        assert callback.survival.below == 0  # a run that goes on in earnest starts to count then

    def test_state_dict_round_trip(self) -> None:
        callback, other = InfluenceFilterCallback.paper(), InfluenceFilterCallback.paper()
        callback.survival.below, callback.batches = 3, 7
        other.load_state_dict(callback.state_dict())
        expected = {
            "batches": 7,
            "survival": {"below": 3, "sum": 0.0, "count": 0},
            "direction": {"held": None, "length": 1, "losses": None, "readings": 0},
            "scorer": {},
            "keep": {},
        }
        assert other.state_dict() == callback.state_dict() == expected


class TestRefusals:
    def test_a_direction_that_does_not_fit_is_told_before_the_first_rollout(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, engine: CountingEngine
    ) -> None:
        callback = InfluenceFilterCallback.paper(direction={"model.norm.weights": torch.ones(32)})
        with pytest.raises(UsageError, match=r"direction = .* it misses \d+ trainable parameters"):
            make_trainer(callback).fit(make_module(engine=engine), data)
        assert engine.calls == 0

    def test_gold_solutions_longer_than_the_context_are_told_before_the_first_rollout(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, engine: CountingEngine
    ) -> None:
        module = make_module(engine=engine, sampling=Sampling(max_new_tokens=8))
        module.model.policy.config.max_position_embeddings = 40  # room for every prompt and its response
        with pytest.raises(UsageError, match=r"task\.gold\[\d\] = .* the policy's context is 40"):
            make_trainer(InfluenceFilterCallback.paper()).fit(module, data)
        assert engine.calls == 0

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"min_survival": 3}, r"min_survival = 3: use a share between 0 \(never stop\) and 1"),
            ({"min_survival": -0.1}, r"min_survival = -0\.1"),
            ({"min_survival": NAN}, "min_survival = nan"),
            ({"patience": 0}, "patience = 0: use a whole number of at least 1"),
            ({"on_empty": "panic"}, "on_empty = 'panic': use skip, keep_all or stop"),
            ({"batch_size": 0}, "batch_size = 0: use 1 or more"),
        ],
    )
    def test_options_out_of_range(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            InfluenceFilterCallback(**options)


class TestCurves:
    def test_what_was_kept(
        self,
        make_module: MakeModule,
        make_trainer: MakeTrainer,
        data: PromptDataModule,
        recorder: Recorder,
        policy: LlamaForCausalLM,
    ) -> None:
        callback = given([3.0, -1.0, NAN, 1.0])
        module = make_module(push_eos(policy), samples_per_prompt=2)  # an unfinished response is of no other class
        chains = ["faithful", "wrong", "faithful", "shortcut"]
        module.judge.check = lambda **_: {"answer": [None] * 4, "correct": [True] * 4, "chain": chains}
        make_trainer(callback, recorder).fit(module, data)
        curves = {name: value for name, value in recorder.curves[0].items() if name.startswith("influence/")}
        assert 0 < curves.pop("influence/cost") < 1
        assert curves.pop("influence/gold_loss") > 0
        assert curves == {
            "influence/kept_fraction": 0.5,
            "influence/score_mean": 1.0,  # of the finite ones
            "influence/effective_sample_size": pytest.approx(2.0**2 / (4 * 2.5)),
            "influence/kept_correct": 0.5,
            "influence/kept_false_positive": 1.0,
            "influence/kept_wrong": 0.0,
        }
        assert recorder.curves[0]["time/score"] >= 0

    def test_kept_by_class_names_only_the_classes_that_occur(self) -> None:
        assert kept_by_class(["wrong", "wrong", "nonsense"], [True, False, True]) == {
            "kept_wrong": 0.5,
            "kept_false_positive": 1.0,
        }
        assert kept_by_class([], [True, False]) == {}  # the task has no check of chains
