from __future__ import annotations

import pytest
from parts import MakeModule, MakeTrainer
from tqdm import tqdm

from ippo import PromptDataModule
from ippo.callbacks import InfluenceFilterCallback, RolloutProgress, RunRecord


def test_the_bar_counts_iterations(
    make_module: MakeModule,
    make_trainer: MakeTrainer,
    data: PromptDataModule,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bar = RolloutProgress()
    trainer = make_trainer(bar, max_epochs=3, enable_progress_bar=True, limit_val_batches=1)
    trainer.fit(make_module(), data)
    assert bar.train_progress_bar.n == bar.train_progress_bar.total == 3
    assert bar.train_progress_bar.desc.startswith("Iteration")
    screen = "".join(capsys.readouterr())
    assert "3/3" in screen
    assert ", em=" in screen  # what is logged for the bar, without its group
    assert "accuracy/em" not in screen
    assert ", val/em=" in screen  # but what was judged keeps its name beside the rollout's own


def test_the_bar_of_a_long_run_is_whole_in_eighty_columns() -> None:
    figures = "em=0.430, kept=0.664, val/em=0.391"
    hours = {"elapsed": 36123.0, "n": 1000, "total": 2000}
    shown = tqdm.format_meter(**hours, ncols=80, prefix="Iteration", postfix=figures, bar_format=RolloutProgress._FORM)
    assert shown.endswith(figures)
    assert len(shown) <= 80


def test_the_bar_does_without_a_last_iteration(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
) -> None:
    bar = RolloutProgress()
    make_trainer(bar, max_epochs=-1, max_steps=2, enable_progress_bar=True).fit(make_module(minibatch_size=99), data)
    assert bar.train_progress_bar.n == 2
    assert bar.train_progress_bar.total is None


@pytest.mark.parametrize("options", [{}, {"log_every_n_steps": 50}, {"logger": False}], ids=str)
def test_the_record_holds_each_iterations_own_figures(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, options: dict[str, int]
) -> None:
    record = RunRecord()
    trainer = make_trainer(
        InfluenceFilterCallback.paper(min_survival=0.0), record, **{"logger": True, **options}, max_epochs=2
    )
    trainer.fit(make_module(), data)
    assert len(record.iterations) == 2
    assert {one["kept_fraction"] for one in record.iterations} != {1.0}
    for one in record.iterations:
        assert one.keys() >= {"kept_fraction", "effective_sample_size", "seconds"}
        assert one["seconds"].keys() == {"rollout", "scoring", "update"}
        assert all(seconds > 0 for seconds in one["seconds"].values())
    assert record.iterations[0]["seconds"] != record.iterations[1]["seconds"]


def test_iterations_that_are_not_filtered_have_no_figures_of_a_filter(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
) -> None:
    record = RunRecord()
    filters = [
        InfluenceFilterCallback.paper(every_n_batches=2, min_survival=0.0),
        InfluenceFilterCallback.paper(every_n_batches=4, dry_run=True, name="look"),
    ]
    make_trainer(*filters, record, max_epochs=4).fit(make_module(), data)
    kept = [one["kept_fraction"] for one in record.iterations]
    assert (kept[1], kept[3]) == (1.0, 1.0)
    assert kept[0] < 1.0
    assert [one["seconds"]["scoring"] > 0 for one in record.iterations] == [True, False, True, False]
    assert [one["gold_loss"] is not None for one in record.iterations] == [True, False, True, False]


def test_a_dry_run_keeps_all(make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule) -> None:
    record = RunRecord()
    make_trainer(InfluenceFilterCallback.paper(dry_run=True), record).fit(make_module(), data)
    (one,) = record.iterations
    assert (one["kept_fraction"], one["effective_sample_size"]) == (1.0, 1.0)
    assert one["seconds"]["scoring"] > 0
    assert one["gold_loss"] > 0


def test_the_record_outlives_a_resume() -> None:
    record, resumed = RunRecord(), RunRecord()
    record.iterations.append({"kept_fraction": 0.5})
    resumed.load_state_dict(record.state_dict())
    assert resumed.iterations == [{"kept_fraction": 0.5}]
    resumed.iterations.append({})
    assert len(record.iterations) == 1
