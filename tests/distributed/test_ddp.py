"""What two ranks learn is what one would."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pyarrow.parquet
import pytest
import torch
from launch import DDP, RANKS, on_ranks
from parts import MakeModule, MakeTrainer, Recorder, state
from torch import Tensor
from training import ITERATIONS, PAIRS, ByPlace, Train, assert_same, both, distance, places

from ippo import Episodes, PromptDataModule
from ippo.callbacks import InfluenceFilterCallback, NumericGuard, ReproducibleState, RewardHackingMonitor
from ippo.data import Task
from ippo.influence import (
    AdamPreconditioned,
    BufferDirection,
    ExactScorer,
    MaxVariance,
    Proportional,
    RandomMatched,
    RandomProjectionScorer,
    ReturnDirection,
    RewardHackingDetector,
    TopFraction,
    TracInScorer,
    Uniform,
)
from ippo.ppo.preferences import PreferenceDirection


@pytest.mark.parametrize("kept", [(10, 10), (10, 0), (7, 3)], ids=["all", "100/0", "70/30"])
def test_two_ranks_end_where_one_does(
    tmp_path: Path, task: Task, train: Train, make_module: MakeModule, kept: tuple[int, int]
) -> None:
    def make() -> L.Callback:
        return InfluenceFilterCallback.paper(scorer=ByPlace(task, kept), weight=Uniform(), min_survival=0.0)

    for one, rank in both(train, tmp_path, make, judge=True):
        assert_same(rank, one)
        assert distance(state(make_module().model), one["weights"]) > 1e-2  # both have learned
        assert [curves["influence/kept_fraction"] for curves in rank["curves"]] == [sum(kept) / 20] * ITERATIONS


@pytest.mark.parametrize("train", ["one gold solution"], indirect=True)
def test_gold_solutions_mixed_in_weigh_on_two_ranks_as_on_one(tmp_path: Path, train: Train) -> None:
    plain, mixed = ({"ptx_coef": ptx_coef, "ptx_batch_size": 3} for ptx_coef in (0.0, 0.5))
    for one, rank in both(train, tmp_path, L.Callback, **mixed):
        assert_same(rank, one)
        assert distance(train(1, **plain)["weights"], one["weights"]) > 1e-3


def test_without_a_critic_no_rank_waits_for_its_gradient(tmp_path: Path, train: Train) -> None:
    rloo = {"advantage": "rloo", "kl_coef": 0.0, "value_coef": 0.0}
    for one, rank in both(train, tmp_path, L.Callback, **rloo):
        assert_same(rank, one)


def test_scorers_directions_and_keep_rules_see_the_buffers_of_both_ranks(tmp_path: Path, train: Train) -> None:
    free: dict[str, Any] = {"min_survival": 0.0}
    adam = AdamPreconditioned(eps=1e-4)  # with less, a gradient that is rounding alone is blown up, by one rank or two
    makers: list[Callable[[], L.Callback]] = [
        lambda: InfluenceFilterCallback.paper(weight=Proportional(), **free),
        lambda: InfluenceFilterCallback.paper(one_pass=False, keep=TopFraction(0.3), **free),
        lambda: InfluenceFilterCallback.paper(
            direction=BufferDirection(leave_one_out=True), keep=TopFraction(0.3), **free
        ),
        lambda: InfluenceFilterCallback.paper(direction=ReturnDirection(), keep=TopFraction(0.5), **free),
        lambda: InfluenceFilterCallback.paper(direction=PreferenceDirection(PAIRS), keep=TopFraction(0.5), **free),
        lambda: InfluenceFilterCallback.paper(direction=adam, keep=TopFraction(0.5), weight=Uniform(), **free),
        lambda: InfluenceFilterCallback.paper(scorer=TracInScorer(snapshots=2), keep=TopFraction(0.5), **free),
        lambda: InfluenceFilterCallback.paper(
            scorer=RandomProjectionScorer(rank=8), direction=BufferDirection(True), **free
        ),
        lambda: InfluenceFilterCallback.paper(
            scorer=ExactScorer("jvp"), keep=MaxVariance(samples=2), weight=Uniform(), **free
        ),
    ]
    gentle = {"learning_rate": 1e-4, "value_learning_rate": 1e-4, "inner_epochs": 1, "micro_batch_size": 8}
    for one, rank in both(train, tmp_path, *makers, iterations=2, **gentle):
        assert_same(rank, one)


def test_a_random_draw_is_the_same_on_both_ranks(tmp_path: Path, train: Train) -> None:
    ranks = on_ranks(
        lambda rank: train(
            RANKS, InfluenceFilterCallback.paper(keep=RandomMatched(TopFraction(0.5)), min_survival=0.0)
        ),
        tmp_path,
    )
    assert [curves["influence/kept_fraction"] for curves in ranks[0]["curves"]] == [0.5] * ITERATIONS
    assert distance(ranks[0]["weights"], ranks[1]["weights"]) == 0.0
    assert ranks[0]["curves"] == ranks[1]["curves"]


def test_a_rank_without_a_single_usable_episode_keeps_in_step(tmp_path: Path, task: Task, train: Train) -> None:
    place = places(task)

    def reward(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float]:
        pairs = zip(prompts, completions, strict=True)
        return [float("nan") if place[prompt] % 2 else float(len(text) % 2) for prompt, text in pairs]

    def leave_one_out() -> L.Callback:
        return InfluenceFilterCallback.paper(direction=BufferDirection(leave_one_out=True), min_survival=0.0)

    def projected() -> L.Callback:
        return InfluenceFilterCallback.paper(
            scorer=RandomProjectionScorer(8), direction=BufferDirection(True), min_survival=0.0
        )

    for one, rank in both(train, tmp_path, InfluenceFilterCallback.paper, leave_one_out, projected, reward=reward):
        assert_same(rank, one)


def test_the_survival_stop_is_one_decision(tmp_path: Path, task: Task, train: Train) -> None:
    for one, rank in both(
        train, tmp_path, lambda: InfluenceFilterCallback.paper(scorer=ByPlace(task, (5, 0)), min_survival=0.3)
    ):
        assert_same(rank, one)
        assert len(rank["curves"]) == 2
        assert rank["stopped_by"][0] == "below 30% of the episodes survived, 2 iterations in a row"


def test_the_alarm_is_one_decision_on_the_episodes_of_both_ranks(tmp_path: Path, task: Task, train: Train) -> None:
    class Turning(ByPlace):
        """All agree in the first iteration; then all of one rank and some of the other oppose."""

        def score(self, module: Any, losses: Any, batches: Any, direction: Any) -> Tensor:
            scores = super().score(module, losses, batches, direction)
            self.kept = (6, 0)
            return scores

    def fit(ranks: int, folder: Path) -> tuple[dict[str, Any], RewardHackingMonitor]:
        scored = InfluenceFilterCallback.paper(scorer=Turning(task, (10, 10)), min_survival=0.0)
        detector = RewardHackingDetector(baseline=0.05, warmup=1, decision_interval=2.0, patience=1)
        monitor = RewardHackingMonitor(stop=True, detector=detector, directory=folder)
        return train(ranks, scored, monitor), monitor

    def on_rank(rank: int) -> dict[str, Any]:
        found, monitor = fit(RANKS, tmp_path / "both")
        return {**found, "detector": monitor.detector.state_dict()}

    one, monitor = fit(1, tmp_path / "one")
    assert monitor.alarm is not None
    assert len(one["curves"]) == monitor.alarm.iteration + 1 == 2
    for rank in on_ranks(on_rank, tmp_path):
        assert_same(rank, one)
        expected = monitor.detector.state_dict()
        assert rank["detector"].pop("figures") == pytest.approx(expected.pop("figures"))
        assert rank["detector"] == expected
    written = [pyarrow.parquet.read_table(tmp_path / folder)["response"].to_pylist() for folder in ("one", "both")]
    assert sorted(written[0]) == sorted(written[1])
    names = [path.name for path in sorted((tmp_path / "both").iterdir())]
    assert names == ["iteration-00001-rank-00.parquet", "iteration-00001-rank-01.parquet"]


def test_each_rank_draws_its_own_answers_and_a_resumed_run_draws_them_again(
    tmp_path: Path, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, task: Task
) -> None:
    same = dataclasses.replace(task, train=[task.train[0]] * 4)  # both ranks answer one and the same prompt

    def fit(iterations: int, checkpoint: Path | None = None) -> tuple[L.Trainer, dict[str, Any]]:
        module, recorder = make_module(samples_per_prompt=2), Recorder()
        trainer = make_trainer(ReproducibleState(), recorder, max_epochs=iterations, **DDP)
        trainer.fit(module, PromptDataModule(same, data.options), ckpt_path=checkpoint)
        return trainer, {"weights": state(module.model), "texts": [one.responses for one in recorder.episodes]}

    def run(rank: int) -> list[dict[str, Any]]:
        torch.manual_seed(0)
        whole = fit(4)[1]
        torch.manual_seed(0)
        trainer, first = fit(2)
        trainer.save_checkpoint(tmp_path / "two.ckpt")
        torch.manual_seed(99)
        return [whole, first, fit(4, tmp_path / "two.ckpt")[1]]

    ranks = on_ranks(run, tmp_path)
    assert ranks[0][0]["texts"] != ranks[1][0]["texts"]
    for whole, first, rest in ranks:
        assert first["texts"] + rest["texts"] == whole["texts"]
        assert distance(rest["weights"], whole["weights"]) == 0.0


def test_a_gradient_that_is_not_finite_on_one_rank_skips_the_step_on_both(tmp_path: Path, train: Train) -> None:
    class Poison(L.Callback):
        def on_rollout_end(self, trainer: L.Trainer, pl_module: Any, episodes: Episodes) -> None:
            if trainer.current_epoch == 1 and trainer.global_rank == 1:
                episodes.advantages[0, 0] = torch.inf  # after all that checks for it

    ranks = on_ranks(lambda rank: train(RANKS, Poison(), NumericGuard()), tmp_path)
    for rank in ranks:
        assert [curves["guard/skipped_steps"] for curves in rank["curves"]] == [0.0, 2.0, 0.0]
        assert all(torch.isfinite(value).all() for value in rank["weights"].values())
    assert distance(ranks[0]["weights"], ranks[1]["weights"]) == 0.0
