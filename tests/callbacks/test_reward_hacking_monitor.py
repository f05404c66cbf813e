from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from parts import GivenScores, MakeModule, MakeTrainer, Recorder
from pyarrow import parquet
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ippo import Episodes, PromptDataModule, emit
from ippo.callbacks import InfluenceFilterCallback, IterationCheckpoint, RewardHackingMonitor
from ippo.errors import UsageError
from ippo.influence import (
    AdamPreconditioned,
    BufferDirection,
    ExactScorer,
    ReturnDirection,
    RewardHackingDetector,
    ValidationDirection,
)

QUIET, LOUD = [1.0] * 8, [-1.0, -3.0, -2.0, -8.0, -5.0, -4.0, -7.0, -6.0]


def quick(**options: Any) -> RewardHackingMonitor:
    """A monitor for iterations of eight episodes: one iteration to learn what is usual, one to be sure."""
    detector = RewardHackingDetector(baseline=0.1, odds_ratio=4.0, decision_interval=2.0, warmup=1, patience=1)
    return RewardHackingMonitor(**{"detector": detector, **options})


def rewarded(prompts: Any, completions: Any, **_: Any) -> list[float]:
    """Every second one."""
    return [float(place % 2) for place in range(len(completions))]


def given(*scores: list[float], **options: Any) -> InfluenceFilterCallback:
    return InfluenceFilterCallback.paper(scorer=GivenScores(*scores), **{"min_survival": 0.0, **options})


def told(found: list[warnings.WarningMessage]) -> list[str]:
    return [str(one.message) for one in found if "reward hacking" in str(one.message)]


@pytest.fixture
def module(make_module: MakeModule) -> Any:
    return make_module(reward=rewarded, samples_per_prompt=2, unfinished_reward=math.inf)


class TestOnRollouts:
    @pytest.mark.parametrize("dry_run", [True, False], ids=["dry run", "acting filter"])
    def test_tells_once_when_it_went_wrong_and_writes_who_did_it(
        self, tmp_path: Path, module: Any, make_trainer: MakeTrainer, data: PromptDataModule, dry_run: bool
    ) -> None:
        """What an acting filter has dropped counts as well."""
        monitor, recorder = quick(), Recorder()
        trainer = make_trainer(given(QUIET, QUIET, LOUD, LOUD, dry_run=dry_run), monitor, recorder, max_epochs=4)
        with pytest.warns(UserWarning, match="reward hacking") as found:
            trainer.fit(module, data)
        (message,) = told(found)  # type: ignore[arg-type]
        file = tmp_path / "hacking" / "iteration-00002-rank-00.parquet"
        assert (
            message
            == f"reward hacking, iteration 2: {monitor.alarm}. Such episodes: {file}; no checkpoint is from before."
        )
        assert monitor.alarm is not None
        assert (monitor.alarm.since, monitor.alarm.opposing, monitor.alarm.usual) == (2, 1.0, 0.1)
        assert len(recorder.curves) == 4  # nothing was asked to stop
        assert [curves["hacking/opposing"] for curves in recorder.curves] == [0.0, 0.0, 1.0, 1.0]
        assert [curves["hacking/survival_unrewarded"] for curves in recorder.curves] == [1.0, 1.0, 0.0, 0.0]
        table = parquet.read_table(file).to_pydict()
        assert table["score"] == [-8.0, -6.0, -4.0, -3.0]
        assert table["reward"] == [1.0] * 4
        assert table["iteration"] == [2] * 4
        third = recorder.episodes[2].records()
        texts = dict(zip(third["score"], third["response"], strict=True))
        assert table["response"] == [texts[score] for score in table["score"]]
        assert table.keys() >= {"prompt", "answer", "correct", "chain", "finished"}
        assert not {"kept", "weight", "reason"} & table.keys()

    def test_stops_if_asked_and_says_why(self, module: Any, make_trainer: MakeTrainer, data: PromptDataModule) -> None:
        monitor, recorder = quick(stop=True), Recorder()
        trainer = make_trainer(given(QUIET, LOUD, LOUD, LOUD, dry_run=True), monitor, recorder, max_epochs=4)
        with pytest.warns(UserWarning, match="reward hacking"):
            trainer.fit(module, data)
        assert len(recorder.curves) == 2
        assert monitor.stopping_reason_message == "reward hacking from iteration 1 on"
        assert monitor.alarm is not None

    def test_keeps_the_checkpoint_of_the_time_before(
        self, tmp_path: Path, module: Any, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        """Though the callback that wrote it keeps the newest one alone."""
        monitor = quick(stop=True)
        monitor.detector.patience = 2
        saving = IterationCheckpoint(tmp_path / "checkpoints", "{epoch}")
        trainer = make_trainer(
            given(QUIET, QUIET, LOUD, LOUD, dry_run=True), monitor, saving, max_epochs=4, enable_checkpointing=True
        )
        with pytest.warns(UserWarning, match=f"checkpoint of the time before: {tmp_path}/hacking/before.ckpt"):
            trainer.fit(module, data)
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["epoch=3.ckpt"]
        kept = torch.load(tmp_path / "hacking" / "before.ckpt", weights_only=True)
        assert kept["epoch"] == 1  # the last iteration that went well
        assert monitor.checkpoint == str(tmp_path / "hacking" / "before.ckpt")

    def test_a_later_rise_leaves_that_checkpoint_alone(
        self, tmp_path: Path, module: Any, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        saving = IterationCheckpoint(tmp_path / "checkpoints", "{epoch}")
        scores = (QUIET, LOUD, *[QUIET] * 4, LOUD)
        trainer = make_trainer(
            given(*scores, dry_run=True), monitor := quick(), saving, max_epochs=7, enable_checkpointing=True
        )
        with pytest.warns(UserWarning, match="reward hacking"):
            trainer.fit(module, data)
        assert monitor.detector.since == 6
        assert torch.load(tmp_path / "hacking" / "before.ckpt", weights_only=True)["epoch"] == 0

    def test_a_rise_that_comes_to_nothing_leaves_no_file(
        self, tmp_path: Path, module: Any, make_trainer: MakeTrainer, data: PromptDataModule, recwarn: Any
    ) -> None:
        class Look(L.Callback):
            def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
                there.append((tmp_path / "hacking" / "before.ckpt").exists())

        there: list[bool] = []
        monitor = quick()
        monitor.detector.patience = 2
        saving = IterationCheckpoint(tmp_path / "checkpoints", "{epoch}")
        scores = given(QUIET, QUIET, LOUD, QUIET, QUIET, dry_run=True)
        make_trainer(scores, monitor, Look(), saving, max_epochs=5, enable_checkpointing=True).fit(module, data)
        assert there == [False, False, True, False, False]
        assert monitor.checkpoint is None
        assert not told(list(recwarn))
        assert not list((tmp_path / "hacking").iterdir())

    def test_an_honest_run_leaves_no_file(
        self, tmp_path: Path, module: Any, make_trainer: MakeTrainer, data: PromptDataModule, recwarn: Any
    ) -> None:
        saving = IterationCheckpoint(tmp_path / "checkpoints", "{epoch}")
        trainer = make_trainer(given(*[QUIET] * 3), quick(), saving, max_epochs=3, enable_checkpointing=True)
        trainer.fit(module, data)
        assert not told(list(recwarn))
        assert not (tmp_path / "hacking").exists()

    def test_episodes_that_a_rule_before_the_filter_left_out_do_not_count(
        self, module: Any, make_trainer: MakeTrainer, data: PromptDataModule, tmp_path: Path
    ) -> None:
        class Half(L.Callback):
            def on_rollout_end(self, trainer: Any, pl_module: Any, episodes: Episodes) -> Episodes:
                return episodes.select(torch.arange(len(episodes)) < 4, "half")

        monitor = quick()
        trainer = make_trainer(Half(), given(QUIET[:4], LOUD[:4], LOUD[:4], dry_run=True), monitor, max_epochs=3)
        with pytest.warns(UserWarning, match="reward hacking"):
            trainer.fit(module, data)
        (file,) = (tmp_path / "hacking").iterdir()
        assert parquet.read_table(file)["score"].to_pylist() == [-8.0, -3.0]


class Stranger(L.LightningModule):
    """Knows nothing of all this: it trains on batches of a state, a reward and a name."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.net.weight)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return losses(self, batch).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def losses(module: Any, batch: Any) -> Tensor:
    return (module.net(batch["state"]) * batch["push"][:, None]).squeeze(1)


def rows(pushes: Sequence[float], size: int = 2) -> DataLoader:
    table = [
        {"state": torch.ones(1), "push": push, "paid": float(place % 2), "name": f"row {place}"}
        for place, push in enumerate(pushes)
    ]
    return DataLoader(table, batch_size=size)  # type: ignore[arg-type]


def batch_filter(**options: Any) -> InfluenceFilterCallback:
    """A row scores by its push: the gold rows push up."""
    gold = ValidationDirection(rows([1.0] * 20, 20), losses)
    return InfluenceFilterCallback(unit="batch", losses=losses, direction=gold, scorer=ExactScorer("loop"), **options)


class TestOnBatches:
    PUSHES = (*[1.0] * 16, *[-1.0] * 16)

    def test_so_many_rows_make_an_iteration(self, tmp_path: Path, make_trainer: MakeTrainer) -> None:
        monitor = quick(rewards="paid", rows_per_iteration=8, row_id="name", stop=True)
        trainer = make_trainer(batch_filter(dry_run=True), monitor, max_epochs=3)
        with pytest.warns(UserWarning, match=r"iteration 2: from iteration 2 on, 100% .*hacking/iteration-00002"):
            trainer.fit(Stranger(), rows(self.PUSHES))
        assert trainer.global_step == 12  # after three iterations of four batches
        table = parquet.read_table(tmp_path / "hacking").to_pydict()
        assert table.pop("score") == pytest.approx([-1.0] * 4)
        assert table == {
            "epoch": [0] * 4,
            "batch": [8, 9, 10, 11],
            "row": ["row 17", "row 19", "row 21", "row 23"],
            "reward": [1.0] * 4,
        }

    def test_rewards_by_a_function_of_the_batch(self, make_trainer: MakeTrainer) -> None:
        monitor = quick(rewards=lambda batch: batch["paid"] * 10 - 5, rows_per_iteration=8)
        monitor.detector.threshold = 0.0
        with pytest.warns(UserWarning, match="reward hacking"):
            make_trainer(batch_filter(), monitor).fit(Stranger(), rows(self.PUSHES))

    def test_a_curve_that_others_monitor_is_there_at_the_end_of_each_epoch(self, make_trainer: MakeTrainer) -> None:
        stop = EarlyStopping("hacking/opposing", patience=1, check_on_train_epoch_end=True)
        monitor = quick(rewards="paid", rows_per_iteration=8)
        trainer = make_trainer(batch_filter(), monitor, stop, max_epochs=9, log_every_n_steps=50)
        trainer.fit(Stranger(), rows([1.0] * 16))
        assert trainer.current_epoch == 2  # it never gets better than the first
        assert trainer.callback_metrics["hacking/opposing"] == 0.0

    @pytest.mark.parametrize("broken_after", [1, 2, 3])
    def test_goes_on_bit_for_bit_in_the_middle_of_an_iteration(
        self, tmp_path: Path, make_trainer: MakeTrainer, broken_after: int
    ) -> None:
        """Epochs of twelve rows, iterations of eight."""

        def turning(module: Any, batch: Any) -> Tensor:
            return losses(module, batch) * (1.0 if module.current_epoch < 2 else -1.0)

        def fit(folder: Path, epochs: int, resume: bool = False) -> RewardHackingMonitor:
            monitor = quick(rewards="paid", rows_per_iteration=8, row_id="name")
            monitor.detector.patience = 2
            gold = ValidationDirection(rows([1.0] * 20, 20), losses)
            influence_filter = InfluenceFilterCallback(unit="batch", losses=turning, direction=gold, dry_run=True)
            saving = IterationCheckpoint(folder / "checkpoints", "{epoch}")
            options: dict[str, Any] = {"default_root_dir": folder, "enable_checkpointing": True, "max_epochs": epochs}
            checkpoint = folder / "checkpoints" / f"epoch={broken_after - 1}.ckpt" if resume else None
            trainer = make_trainer(influence_filter, monitor, saving, **options)
            trainer.fit(Stranger(), rows([1.0] * 12), ckpt_path=checkpoint, weights_only=True)
            return monitor

        whole = fit(tmp_path / "whole", 4)
        fit(tmp_path / "parts", broken_after)
        second = fit(tmp_path / "parts", 4, resume=True)
        assert whole.alarm is not None
        assert json.dumps(second.detector.state_dict()) == json.dumps(whole.detector.state_dict())
        files = [next((tmp_path / run / "hacking").glob("*.parquet")) for run in ("whole", "parts")]
        assert files[0].name == files[1].name
        assert parquet.read_table(files[0]).equals(parquet.read_table(files[1]))


def test_episodes_of_an_existing_project(make_trainer: MakeTrainer) -> None:
    class Sampling(Stranger):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            sign = 1.0 if self.current_epoch < 2 else -1.0
            episodes = {"state": batch["state"], "push": sign * batch["push"], "rewards": torch.ones(8)}
            return losses(self, emit(self.trainer, self, "on_rollout_end", episodes)).sum()

    gold = ValidationDirection(rows([1.0] * 4, 4), losses)
    influence_filter = InfluenceFilterCallback(losses=losses, direction=gold, min_survival=0.0)
    with pytest.warns(UserWarning, match="from iteration 2 on, 100%"):
        make_trainer(influence_filter, quick(), max_epochs=3).fit(Sampling(), rows([1.0] * 8, 8))


class TestRefuses:
    @pytest.mark.parametrize(
        ("filters", "options", "message"),
        [
            ([], {}, "filter = None: no such InfluenceFilterCallback is there"),
            ([{"name": "quality"}], {"filter": "toxicity"}, "filter = 'toxicity': no such"),
            ([{"direction": BufferDirection()}], {}, "filter = 'influence': its scores compare rows with one another"),
            ([{"unit": "batch", "losses": losses}], {}, "filter = 'influence': its scores compare rows"),
            ([{"direction": ReturnDirection("validation")}], {}, "or with what the watched reward itself says"),
            ([{"direction": AdamPreconditioned(ReturnDirection("validation"))}], {}, "watched reward itself"),
        ],
        ids=["no filter", "other name", "a direction of the buffer", "the batch's own", "its reward's", "by Adam"],
    )
    def test_what_it_could_not_hear(
        self,
        module: Any,
        make_trainer: MakeTrainer,
        data: PromptDataModule,
        filters: list[dict[str, Any]],
        options: dict[str, Any],
        message: str,
    ) -> None:
        heard = [InfluenceFilterCallback(**one) for one in filters]
        with pytest.raises(UsageError, match=re.escape(message)):
            make_trainer(*heard, RewardHackingMonitor(**options)).fit(module, data)

    def test_no_answers_that_the_truth_has_judged(
        self, module: Any, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        by_truth = InfluenceFilterCallback(direction=ReturnDirection("validation", judged_by="check"), dry_run=True)
        monitor = RewardHackingMonitor()
        make_trainer(by_truth, monitor).fit(module, data)
        assert monitor.detector.iterations == 1

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "rewards = 'rewards': a dict has no such entry: give a function of it"),
            ({"rewards": lambda batch: torch.ones(3)}, "it gives [3] for 2 rows"),
            ({"rewards": "paid", "row_id": "id"}, "row_id = 'id': a dict has no such entry"),
        ],
        ids=["no rewards", "too many rewards", "no ids"],
    )
    def test_batches_without_what_it_reads(
        self, make_trainer: MakeTrainer, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(UsageError, match=re.escape(message)):
            make_trainer(batch_filter(), RewardHackingMonitor(**options)).fit(Stranger(), rows([1.0] * 4))

    def test_options_out_of_range(self) -> None:
        with pytest.raises(UsageError, match="rows_per_iteration = 0: use at least 1"):
            RewardHackingMonitor(rows_per_iteration=0)
        with pytest.raises(UsageError, match="patience = 0: use at least 1"):
            RewardHackingMonitor(patience=0)
