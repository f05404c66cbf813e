"""``unit="batch"``: the filter beside a training_step that knows nothing of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from parts import GivenScores, MakeTrainer
from pyarrow import parquet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ippo.callbacks import InfluenceFilterCallback
from ippo.errors import UsageError
from ippo.influence import (
    ExactScorer,
    MaxVariance,
    PositiveScore,
    Proportional,
    RandomMatched,
    TracInScorer,
    Uniform,
    ValidationDirection,
)

X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 1.0], [2.0, 0.0], [0.0, -2.0]])
Y = torch.tensor([1.0, -1.0, 0.0, 3.0, 2.0, -2.0])
ROWS = TensorDataset(X, Y)
AGREEING = [[1.0, -1.0, 2.0]]  # of these rows' labels, at weight 0 and along the first two rows


def losses(module: Any, batch: Any) -> Tensor:
    return (module.net(batch[0]).squeeze(1) - batch[1]) ** 2


class Regression(L.LightningModule):
    """Plain automatic optimisation; keeps what its steps were given."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 1)
        nn.init.zeros_(self.net.weight)
        nn.init.zeros_(self.net.bias)
        self.seen: list[list[float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append(batch[1].tolist())
        return losses(self, batch).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", losses(self, batch).mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def loader(size: int = 3) -> DataLoader:
    return DataLoader(ROWS, batch_size=size)


def given(*scores: list[float], **options: Any) -> InfluenceFilterCallback:
    direction = {"net.weight": torch.ones(1, 2), "net.bias": torch.ones(1)}
    settings: dict[str, Any] = {"unit": "batch", "losses": losses, "direction": direction, "min_survival": 0.0}
    return InfluenceFilterCallback(**{"scorer": GivenScores(*scores), **settings, **options})


def gold(**options: Any) -> InfluenceFilterCallback:
    settings: dict[str, Any] = {"unit": "batch", "losses": losses, "keep": PositiveScore()}
    return InfluenceFilterCallback(
        **{**settings, "direction": ValidationDirection([(X[:2], Y[:2])], losses), **options}
    )


def weights(module: Regression) -> list[float]:
    return [*module.net.weight[0].tolist(), module.net.bias.item()]


UP, DOWN = [1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]


class TestDropping:
    def test_the_step_sees_the_rows_that_agree(self, make_trainer: MakeTrainer) -> None:
        module = Regression()
        make_trainer(given([1.0, -1.0, 2.0], [-1.0, 0.0, 1.0])).fit(module, loader())
        assert module.seen == [[1.0, 0.0], [-2.0]]

    def test_scores_are_those_of_the_losses_along_the_gold_rows(self, make_trainer: MakeTrainer) -> None:
        module = Regression()
        make_trainer(gold()).fit(module, loader(6))
        # At weight 0 a row's gradient is -2 y (x, 1); the gold rows' mean is -(1 (1, 0, 1) - (0, 1, 1)) = (-1, 1, 0).
        by_hand = -2 * Y * (-X[:, 0] + X[:, 1])
        assert module.seen == [Y[by_hand > 0].tolist()]

    def test_weights_after_a_step_are_those_of_training_on_the_kept_rows(self, make_trainer: MakeTrainer) -> None:
        filtered, plain = Regression(), Regression()
        make_trainer(given([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])).fit(filtered, loader(6))
        kept = TensorDataset(X[::2], Y[::2])
        make_trainer().fit(plain, DataLoader(kept, batch_size=3))
        assert weights(filtered) == weights(plain)

    @pytest.mark.parametrize("scorer", [TracInScorer(2), ExactScorer("jvp"), ExactScorer("loop")])
    def test_any_scorer(self, make_trainer: MakeTrainer, scorer: Any) -> None:
        module = Regression()
        make_trainer(gold(scorer=scorer, direction=None), max_epochs=2).fit(module, loader(6))
        assert len(module.seen) == 2

    def test_batches_that_are_used_again_stay_whole(self, make_trainer: MakeTrainer) -> None:
        module, batch = Regression(), (X.clone(), Y.clone())
        scores = [1.0, -1.0, 1.0, -1.0, 1.0, -1.0]
        make_trainer(given(scores, scores), max_epochs=2).fit(module, DataLoader([batch], batch_size=None))
        assert module.seen == [Y[::2].tolist()] * 2
        assert torch.equal(batch[0], X)
        assert torch.equal(batch[1], Y)

    def test_a_batch_is_whole_again_when_its_step_fails(self, make_trainer: MakeTrainer) -> None:
        class Failing(Regression):
            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                raise RuntimeError("a bug of the project")

        batch = (X.clone(), Y.clone())
        with pytest.raises(RuntimeError, match="a bug of the project"):
            make_trainer(given([1.0, *[-1.0] * 5])).fit(Failing(), DataLoader([batch], batch_size=None))
        assert torch.equal(batch[0], X)

    def test_a_type_of_its_own_is_cut_by_select(self, make_trainer: MakeTrainer) -> None:
        class Graph:
            def __init__(self) -> None:
                self.parts = [X.clone(), Y.clone()]

            def __getitem__(self, place: int) -> Tensor:
                return self.parts[place]

        def select(graph: Graph, kept: Tensor) -> None:
            graph.parts = [part[kept] for part in graph.parts]

        module = Regression()
        data = DataLoader([0], batch_size=None, collate_fn=lambda _: Graph())
        make_trainer(given([1.0, *[-1.0] * 5], select=select)).fit(module, data)
        assert module.seen == [[1.0]]

    def test_what_select_returns_puts_the_rows_back(self, make_trainer: MakeTrainer) -> None:
        def select(batch: Any, kept: Tensor) -> Any:
            whole = batch[:]
            batch[:] = [part[kept] for part in batch]
            return lambda: batch.__setitem__(slice(None), whole)

        module, batch = Regression(), [X.clone(), Y.clone()]
        scores = [1.0, *[-1.0] * 5]
        make_trainer(given(scores, scores, select=select), max_epochs=2).fit(
            module, DataLoader([batch], batch_size=None)
        )
        assert module.seen == [[1.0]] * 2
        assert len(batch[0]) == 6

    def test_texts_in_a_tuple_leave_with_their_rows(self, make_trainer: MakeTrainer) -> None:
        names: list[Any] = []

        class Named(Regression):
            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                names.append(batch[2])
                return super().training_step(batch, batch_idx)

        rows = [(x, y, name) for x, y, name in zip(X, Y, "abcdef", strict=True)]
        make_trainer(given([1.0, -1.0, 1.0, -1.0, -1.0, 1.0])).fit(Named(), DataLoader(rows, batch_size=6))
        assert names == [("a", "c", "f")]

    def test_whoever_looks_at_the_end_of_a_batch_sees_it_as_the_step_did(self, make_trainer: MakeTrainer) -> None:
        seen: dict[str, int] = {}

        class Look(L.Callback):
            def __init__(self, name: str) -> None:
                self.name = name

            def on_train_batch_end(
                self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
            ) -> None:
                seen[self.name] = len(batch[1])

        class Looking(Regression):
            def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
                seen["module"] = len(batch[1])

        module, batch = Looking(), (X.clone(), Y.clone())
        filters = given([1.0, *[-1.0] * 5])
        make_trainer(Look("before"), filters, Look("after")).fit(module, DataLoader([batch], batch_size=None))
        assert seen == {"before": 1, "after": 1, "module": 1}
        assert len(batch[1]) == 6
        assert "on_train_batch_end" not in vars(module)


class TestBatchNorm:
    """Statistics over one row are none."""

    class Normed(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.seen.append(batch[1].tolist())
            return losses(self, (self.norm(batch[0]), batch[1])).mean()

    def test_two_rows_stay_where_one_would(self, tmp_path: Path, make_trainer: MakeTrainer) -> None:
        module = self.Normed()
        direction = {name: torch.ones_like(value) for name, value in module.named_parameters()}
        callback = given([-2.0, 1.0, -1.0], [-1.0, 1.0, 2.0], direction=direction, audit="audit")
        make_trainer(callback).fit(module, loader())
        assert module.seen == [[-1.0, 0.0], [2.0, -2.0]]
        assert parquet.read_table(tmp_path / "audit").to_pydict()["kept"] == [False, True, True] * 2

    def test_none_stay_where_none_would(self, make_trainer: MakeTrainer) -> None:
        module = self.Normed()
        direction = {name: torch.ones_like(value) for name, value in module.named_parameters()}
        make_trainer(given(DOWN, DOWN, direction=direction)).fit(module, loader())
        assert module.seen == []


class TestWeights:
    class Weighing(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.seen.append(batch["weight"].tolist())
            return (batch["weight"] * losses(self, (batch["x"], batch["y"]))).mean()

    def test_all_rows_stay_and_the_mean_is_over_the_kept(self, make_trainer: MakeTrainer) -> None:
        module = self.Weighing()
        data = DataLoader([{"x": X[:4].clone(), "y": Y[:4].clone()}], batch_size=None)
        callback = given(
            [3.0, -1.0, 1.0, -1.0],
            action="weight",
            weight=Proportional(),
            losses=lambda m, b: losses(m, (b["x"], b["y"])),
        )
        make_trainer(callback).fit(module, data)
        assert module.seen == [[3.0, 0.0, 1.0, 0.0]]  # proportional, of mean 1


class TestNothingSurvives:
    def test_the_step_is_skipped_and_the_schedule_goes_on(self, make_trainer: MakeTrainer) -> None:
        module = Regression()
        trainer = make_trainer(given(DOWN, DOWN))
        with pytest.warns(UserWarning, match="no row of a batch survived; such a step is skipped"):
            trainer.fit(module, loader())
        assert module.seen == []
        assert weights(module) == [0.0, 0.0, 0.0]
        assert trainer.optimizers[0].param_groups[0]["lr"] == 0.025
        assert "training_step" not in vars(module)

    def test_what_earlier_batches_accumulated_is_stepped_on(self, make_trainer: MakeTrainer) -> None:
        filtered, plain = Regression(), Regression()
        make_trainer(given(UP, DOWN), accumulate_grad_batches=2).fit(filtered, loader())
        make_trainer().fit(plain, DataLoader(TensorDataset(X[:3], Y[:3]), 3))
        assert weights(filtered) == pytest.approx(weights(plain))  # the mean over the rows that stay, of both batches

    def test_keep_all(self, make_trainer: MakeTrainer) -> None:
        module = Regression()
        make_trainer(given(DOWN, UP, on_empty="keep_all")).fit(module, loader())
        assert [len(rows) for rows in module.seen] == [3, 3]

    def test_stop(self, make_trainer: MakeTrainer) -> None:
        callback = given(DOWN, DOWN, DOWN, DOWN, on_empty="stop")
        trainer = make_trainer(callback, max_epochs=2)
        trainer.fit(Regression(), loader())
        assert trainer.current_epoch == 1
        assert callback.stopping_reason_message == "no row survived"

    def test_where_other_ranks_have_survivors_this_one_adds_nothing(self, make_trainer: MakeTrainer) -> None:
        class Mute(L.Callback):
            def on_train_batch_start(self, *_: Any) -> None:
                callback._unit.changes._share = 0.0

        callback, module = given(UP, UP), Regression()
        make_trainer(callback, Mute()).fit(module, loader())
        assert len(module.seen) == 2  # the step is taken, for the others' sake
        assert weights(module) == [0.0, 0.0, 0.0]


class TestSurvival:
    def test_epochs_with_few_survivors_end_the_training(self, make_trainer: MakeTrainer) -> None:
        low, high = [1.0, -1.0, -1.0], [1.0, 1.0, -1.0]
        callback = given(low, low, high, high, low, high, low, low, *[high] * 9, min_survival=0.6, patience=2)
        trainer = make_trainer(callback, max_epochs=6)
        trainer.fit(Regression(), loader())
        assert trainer.current_epoch == 4  # means 1/3, 2/3, 1/2, 1/3
        assert callback.stopping_reason_message == "below 60% of the rows survived, 2 epochs in a row"


class TestSchedule:
    def test_warmup_and_every_n_batches(self, make_trainer: MakeTrainer) -> None:
        module = Regression()
        callback = given(*[[-1.0, 1.0]] * 2, warmup_batches=1, every_n_batches=3)
        make_trainer(callback, max_epochs=2).fit(module, loader(2))
        assert [len(rows) for rows in module.seen] == [2, 1, 2, 2, 1, 2]

    def test_a_direction_holds_for_so_many_batches_where_nothing_moves(self, make_trainer: MakeTrainer) -> None:
        class Still(Regression):
            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=0.0)

        computed = []

        def counted(module: Any, batch: Any) -> Tensor:
            computed.append(1)
            return losses(module, batch)

        for every, times in ((1, 6), (2, 3), (4, 2)):
            computed.clear()
            direction = ValidationDirection([(X, Y)], counted)
            callback = gold(direction=direction, direction_every_n_batches=every, on_empty="keep_all")
            make_trainer(callback, max_epochs=6).fit(Still(), loader(6))
            assert len(computed) == times + 1  # and once before training, to see that it fits

    def test_a_reading_takes_the_next_gold_rows(self, make_trainer: MakeTrainer) -> None:
        read = []

        def noted(module: Any, batch: Any) -> Tensor:
            read.append(batch[1].tolist())
            return losses(module, batch)

        direction = ValidationDirection(DataLoader(TensorDataset(X, torch.arange(6.0)), 2), noted)
        callback = gold(direction=direction, direction_rows=3, on_empty="keep_all")
        make_trainer(callback).fit(Regression(), loader(3))
        trial, first, second = read[:2], read[2:4], read[4:]
        assert trial == first == [[0.0, 1.0], [2.0, 3.0]]  # the trial before training takes nothing away
        assert second == [[4.0, 5.0], [0.0, 1.0]]

    def test_no_reading_takes_more_than_a_pass(self, make_trainer: MakeTrainer) -> None:
        read = []

        def noted(module: Any, batch: Any) -> Tensor:
            read.append(len(batch[1]))
            return losses(module, batch)

        direction = ValidationDirection(DataLoader(ROWS, 6), noted)
        make_trainer(gold(direction=direction, direction_rows=100)).fit(Regression(), loader(6))
        assert read == [6, 6]

    def test_reading_a_shuffled_loader_changes_nothing_that_is_drawn(self, make_trainer: MakeTrainer) -> None:
        seen = []
        for callbacks in ((), (gold(direction=ValidationDirection(DataLoader(ROWS, 2, shuffle=True), losses)),)):
            L.seed_everything(0, verbose=False)
            module = Regression()
            for callback in callbacks:
                callback.dry_run = True
            make_trainer(*callbacks, max_epochs=2).fit(module, DataLoader(ROWS, 2, shuffle=True))
            seen.append(module.seen)
        assert seen[0] == seen[1]

    def test_a_dry_run_scores_logs_and_leaves_all_in_place(self, make_trainer: MakeTrainer) -> None:
        filtered, plain = Regression(), Regression()
        callback = given(*[DOWN] * 4, dry_run=True, min_survival=0.9, patience=1, on_empty="stop")
        trainer = make_trainer(callback, max_epochs=2)
        trainer.fit(filtered, loader())
        make_trainer(max_epochs=2).fit(plain, loader())
        assert weights(filtered) == weights(plain)
        assert float(trainer.callback_metrics["influence/kept_fraction"]) == 0.0


class TestBesideOthers:
    @pytest.mark.parametrize(
        "options",
        [
            {"accumulate_grad_batches": 2},
            {"gradient_clip_val": 0.1},
            {"precision": "bf16-mixed"},
            {"precision": "64-true"},
            {"limit_train_batches": 1},
        ],
        ids=str,
    )
    def test_with_the_trainers_options(self, make_trainer: MakeTrainer, options: Any) -> None:
        module = Regression()
        make_trainer(gold(on_empty="keep_all"), **options).fit(module, loader(6))
        assert module.seen == AGREEING

    def test_with_lightnings_callbacks_and_a_resume(self, tmp_path: Path, make_trainer: MakeTrainer) -> None:
        def run(epochs: int, resume: bool = False) -> tuple[InfluenceFilterCallback, Regression]:
            callback, module = gold(direction_every_n_batches=3, min_survival=0.1), Regression()
            others = (
                EarlyStopping("val/loss"),
                ModelCheckpoint(tmp_path, save_last=True, filename="{epoch}"),
                LearningRateMonitor(),
            )
            logger = CSVLogger(tmp_path)
            options: dict[str, Any] = {"enable_checkpointing": True, "limit_val_batches": 1, "logger": logger}
            trainer = make_trainer(callback, *others, max_epochs=epochs, **options)
            trainer.fit(module, loader(2), loader(6), ckpt_path=tmp_path / "last.ckpt" if resume else None)
            return callback, module

        callback, whole = run(4)
        assert callback.batches == 12
        assert run(2)[0].batches == 6
        resumed, module = run(4, resume=True)
        assert resumed.batches == 12
        assert weights(module) == weights(whole)

    def test_two_filters(self, make_trainer: MakeTrainer) -> None:
        module, batch = Regression(), (X.clone(), Y.clone())
        first = given([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
        second = given([-1.0, 1.0, 1.0], name="second")
        trainer = make_trainer(first, second)
        trainer.fit(module, DataLoader([batch], batch_size=None))
        assert module.seen == [[-1.0, 0.0]]
        assert torch.equal(batch[1], Y)
        assert first.state_key != second.state_key
        kept = {
            name: float(value) for name, value in trainer.callback_metrics.items() if name.endswith("kept_fraction")
        }
        assert kept == {"influence/kept_fraction": 0.5, "second/kept_fraction": pytest.approx(2 / 3)}

    def test_manual_optimisation_with_two_optimizers(self, make_trainer: MakeTrainer) -> None:
        class Two(Regression):
            def __init__(self) -> None:
                super().__init__()
                self.automatic_optimization = False
                self.other = nn.Linear(2, 1)

            def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
                self.seen.append(batch[1].tolist())
                for optimizer, net in zip(self.optimizers(), (self.net, self.other), strict=True):
                    optimizer.zero_grad()
                    self.manual_backward(((net(batch[0]).squeeze(1) - batch[1]) ** 2).mean())
                    optimizer.step()

            def configure_optimizers(self) -> Any:
                return [torch.optim.SGD(net.parameters(), lr=0.1) for net in (self.net, self.other)]

        module = Two()
        make_trainer(gold(scorer=ExactScorer(parameters="^net"))).fit(module, loader(6))
        assert module.seen == AGREEING

    def test_the_trainers_validation_data_will_do(self, make_trainer: MakeTrainer) -> None:
        module = Regression()
        callback = gold(direction=ValidationDirection())
        make_trainer(callback, limit_val_batches=1).fit(module, loader(6), DataLoader(TensorDataset(X[:2], Y[:2]), 2))
        assert module.seen == AGREEING


class TestCurves:
    def test_points_are_means_since_the_last_one(self, tmp_path: Path, make_trainer: MakeTrainer) -> None:
        scores = [[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [1.0, 3.0]]
        logger = TensorBoardLogger(tmp_path, name="", version="run")
        callback = given(*scores, on_empty="keep_all")
        trainer = make_trainer(callback, max_epochs=2, limit_train_batches=2, logger=logger, log_every_n_steps=2)
        trainer.fit(Regression(), loader(2))
        events = EventAccumulator(str(tmp_path / "run"))
        events.Reload()
        points = [(point.step, point.value) for point in events.Scalars("influence/kept_fraction")]
        assert points == [(1, 0.75), (3, 0.75)]
        assert [point.value for point in events.Scalars("influence/score_mean")] == [0.5, 1.0]
        assert all(0 < point.value < 1 for point in events.Scalars("influence/cost"))
        assert {"time/score", "influence/effective_sample_size"} <= set(events.Tags()["scalars"])
        assert events.Tags()["histograms"] == ["influence/scores"]

    @pytest.mark.parametrize("options", [{}, {"warmup_batches": 4}, {"every_n_batches": 5}], ids=str)
    def test_the_gold_loss_is_there_at_each_epochs_end_to_stop_by(
        self, make_trainer: MakeTrainer, options: Any
    ) -> None:
        seen: list[float] = []
        now: list[float] = []

        class Look(L.Callback):
            def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
                seen.append(float(trainer.callback_metrics["influence/gold_loss"]))
                now.append(float(losses(pl_module, (X[:2], Y[:2])).mean()))

        stop = EarlyStopping("influence/gold_loss", min_delta=1e6, patience=2, check_on_train_epoch_end=True)
        callback = gold(on_empty="keep_all", min_survival=0.0, **options)
        trainer = make_trainer(callback, stop, Look(), max_epochs=9, log_every_n_steps=50)
        trainer.fit(Regression(), loader())
        assert len(seen) == 3  # the first, and twice no better by the million that is asked for
        unscored = {"warmup_batches": [0, 1], "every_n_batches": [1]}  # epochs, for which it is computed
        for epoch in unscored.get(next(iter(options), ""), []):
            assert seen[epoch] == pytest.approx(now[epoch])

    def test_without_a_logger(self, make_trainer: MakeTrainer) -> None:
        trainer = make_trainer(given(UP, UP))
        trainer.fit(Regression(), loader())
        assert float(trainer.callback_metrics["influence/kept_fraction"]) == 1.0

    def test_the_audit_file_tells_every_row(self, tmp_path: Path, make_trainer: MakeTrainer) -> None:
        def ids(batch: Any) -> list[str]:
            return [f"y={value:g}" for value in batch[1]]

        callback = given([1.0, -1.0, float("nan")], [0.0, 1.0, 1.0], audit="decisions", row_id=ids)
        make_trainer(callback).fit(Regression(), loader())
        rows = parquet.read_table(tmp_path / "decisions").to_pylist()
        assert [(row["batch"], row["row"], row["id"], row["kept"], row["reason"]) for row in rows] == [
            (0, 0, "y=1", True, ""),
            (0, 1, "y=-1", False, "score <= 0"),
            (0, 2, "y=0", False, "score is not finite"),
            (1, 0, "y=3", False, "score <= 0"),
            (1, 1, "y=2", True, ""),
            (1, 2, "y=-2", True, ""),
        ]
        assert [row["score"] for row in rows][:2] == [1.0, -1.0]

    def test_the_audit_files_tell_every_batch_once_after_a_stop_in_mid_epoch(
        self, tmp_path: Path, make_trainer: MakeTrainer
    ) -> None:
        class Stop(L.Callback):
            def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
                if trainer.global_step == 3:
                    trainer.save_checkpoint(tmp_path / "three.ckpt")
                if trainer.global_step == 5:
                    raise RuntimeError("out of memory")

        def run(*others: L.Callback, resume: Path | None = None) -> None:
            callback = gold(dry_run=True, audit="audit", row_id=lambda batch: batch[1])
            make_trainer(callback, *others, max_epochs=2).fit(Regression(), loader(1), ckpt_path=resume)

        with pytest.raises(RuntimeError, match="out of memory"):
            run(Stop())
        assert len(parquet.read_table(tmp_path / "audit")) == 5
        run(resume=tmp_path / "three.ckpt")
        rows = sorted(parquet.read_table(tmp_path / "audit").to_pylist(), key=lambda row: row["batch"])
        assert [row["batch"] for row in rows] == list(range(12))
        assert [row["epoch"] for row in rows] == [0] * 6 + [1] * 6
        assert [row["id"] for row in rows][6:] == Y.tolist()

    def test_decisions_of_two_runs_are_not_mixed(self, make_trainer: MakeTrainer) -> None:
        make_trainer(gold(audit="audit")).fit(Regression(), loader(6))
        with pytest.raises(UsageError, match=r"audit = .* it holds the decisions of another run: name another"):
            make_trainer(gold(audit="audit")).fit(Regression(), loader(6))
        make_trainer(gold(audit="other")).fit(Regression(), loader(6))


class Stream(Regression):
    def training_step(self, dataloader_iter: Any) -> Tensor:  # type: ignore[override]
        raise AssertionError("never reached")


class TestRefusals:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: gold(losses=None), r"losses = None: pass losses\(module, batch\) -> \[n\]"),
            (lambda: gold(losses=lambda m, b: losses(m, b).mean()), r"losses = 'a result of shape \(\)': return one"),
            (lambda: gold(losses=lambda m, b: losses(m, b)[:4]), "losses = '4 losses for a batch of 6 rows'"),
            (
                lambda: gold(direction={"other.weight": torch.ones(1)}),
                "direction = .* it misses 2 trainable parameters",
            ),
            (lambda: gold(keep=MaxVariance(2)), "keep = 'MaxVariance': it reads rewards"),
            (lambda: gold(keep=RandomMatched(within_rewards=True)), "keep = 'RandomMatched': it reads rewards"),
            (lambda: gold(direction=None, direction_every_n_batches=2), "direction_every_n_batches = 2: the direction"),
            (lambda: gold(action="weight"), "action = 'weight': a .* has no place for it"),
            (lambda: gold(audit="audit", row_id=lambda batch: [1]), "row_id = .* it gives 1 ids for 6 rows"),
        ],
    )
    def test_before_the_first_step(self, make_trainer: MakeTrainer, make: Any, message: str) -> None:
        module = Regression()
        with pytest.raises(UsageError, match=message):
            make_trainer(make()).fit(module, loader(6))
        assert module.seen == []

    def test_rows_that_differ_in_length(self, make_trainer: MakeTrainer) -> None:
        data = DataLoader([(X, Y, torch.ones(5))], batch_size=None)
        with pytest.raises(UsageError, match=r"batch\[2\] = '5 rows, where batch\[0\] has 6'"):
            make_trainer(gold()).fit(Regression(), data)

    def test_a_step_that_draws_its_own_batches(self, make_trainer: MakeTrainer) -> None:
        with pytest.raises(UsageError, match="training_step = 'with dataloader_iter'"):
            make_trainer(gold()).fit(Stream(), loader())

    def test_two_filters_of_one_name(self, make_trainer: MakeTrainer) -> None:
        with pytest.raises(RuntimeError, match="state_key` must be unique"):  # Lightning's own check
            make_trainer(gold(), gold())

    def test_a_buffer_that_never_comes(self, make_trainer: MakeTrainer) -> None:
        callback = InfluenceFilterCallback(losses=losses, direction=gold().direction)
        with pytest.raises(UsageError, match=r"unit = 'buffer': Regression let an epoch pass .* or use unit='batch'"):
            make_trainer(callback).fit(Regression(), loader())

    def test_no_direction_to_be_found(self, make_trainer: MakeTrainer) -> None:
        with pytest.raises(
            UsageError, match=r"Regression has no validation_direction\(\) and the trainer no validation"
        ):
            make_trainer(InfluenceFilterCallback(losses=losses)).fit(Regression(), loader())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"unit": "row"}, "unit = 'row': use buffer or batch"),
            ({"action": "flag"}, "action = 'flag': use drop or weight"),
            ({"every_n_batches": 0}, "every_n_batches = 0: use 1 or more"),
            ({"direction_every_n_batches": 0}, "direction_every_n_batches = 0"),
            ({"direction_rows": 0}, "direction_rows = 0"),
            ({"warmup_batches": -1}, "warmup_batches = -1: use 0 or more"),
            ({"unit": "batch", "token_scores": True}, "token_scores = True: rows of a batch have no tokens"),
            ({"unit": "batch", "drop_tokens": True}, "drop_tokens = True: rows of a batch have no tokens"),
            ({"unit": "batch", "weight": Proportional()}, "weight = 'Proportional': .* use action='weight'"),
        ],
    )
    def test_options(self, options: Any, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            InfluenceFilterCallback(**options)
        InfluenceFilterCallback(unit="batch", weight=Uniform())  # says nothing, and is fine
