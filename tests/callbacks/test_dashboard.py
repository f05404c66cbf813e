"""What TensorBoard is told, read back from the event files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from parts import GivenScores, MakeModule, MakeTrainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from ippo import PPOModule, PromptDataModule
from ippo.callbacks import Dashboard, InfluenceFilterCallback, Throughput
from ippo.callbacks.tensorboard import DescribedCurves
from ippo.callbacks.tensorboard.answers import page
from ippo.errors import UsageError

MakeRun = Callable[..., tuple[L.Trainer, PPOModule]]


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


@pytest.fixture
def run(make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule) -> MakeRun:
    """Two iterations, filtered and validated, with a validation before them."""

    def make(logger: Any, *callbacks: L.Callback, **options: Any) -> tuple[L.Trainer, PPOModule]:
        scores = InfluenceFilterCallback(scorer=GivenScores([1.0, -1.0] * 4, [1.0] * 8))
        monitors = [LearningRateMonitor(logging_interval="epoch"), Throughput()] if logger else []
        watching = [*callbacks, *monitors]
        trainer = make_trainer(scores, *watching, logger=logger, max_epochs=2, limit_val_batches=1, **options)
        module = make_module(samples_per_prompt=2)
        trainer.validate(module, data, verbose=False)
        trainer.fit(module, data)
        return trainer, module

    return make


@pytest.fixture
def events(run: MakeRun, tmp_path: Path) -> EventAccumulator:
    run(DescribedCurves(tmp_path, name="", version="ppo"), Dashboard(answers=2))
    return read(tmp_path / "ppo")


class TestCurves:
    def test_begin_before_training_and_have_a_baseline(self, events: EventAccumulator) -> None:
        assert [point.step for point in events.Scalars("val/em")] == [0, 1, 2]
        first = events.Scalars("val/em")[0].value
        assert [(point.step, point.value) for point in events.Scalars("baseline/em")] == [(n, first) for n in range(3)]
        gold = events.Scalars("influence/gold_loss")
        assert [point.value for point in events.Scalars("baseline/gold_loss")] == [gold[0].value] * len(gold)

    def test_tell_rates_norms_and_time(self, events: EventAccumulator) -> None:
        wanted = {"lr-AdamW/policy", "lr-AdamW/value", "ppo/policy_grad_norm", "ppo/value_grad_norm", "time/iteration"}
        assert set(events.Tags()["scalars"]) >= wanted
        assert [point.value for point in events.Scalars("lr-AdamW/policy")] == [pytest.approx(1e-3)] * 2

    def test_say_what_they_show_and_have_no_point_twice(self, events: EventAccumulator) -> None:
        for tag in ("ppo/mismatch", "influence/cost", "influence/gold_loss", "val/em", "ppo/policy_grad_norm"):
            assert len(events.SummaryMetadata(tag).summary_description) > 20, tag
        steps = [point.step for point in events.Scalars("ppo/mismatch")]
        assert steps == sorted(set(steps))

    def test_no_curve_that_means_nothing(self, events: EventAccumulator) -> None:
        assert "hp_metric" not in events.Tags()["scalars"]


def test_the_layout_names_curves_that_there_are(events: EventAccumulator) -> None:
    (found,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(found.tensor_proto.string_val[0])
    well, machinery = layout.category
    assert well.title == "Is it going well?"
    assert len(well.chart) == 5
    tags = [tag.removesuffix("$") for part in (well, machinery) for chart in part.chart for tag in chart.multiline.tag]
    unknown = set(tags) - set(events.Tags()["scalars"])
    assert unknown == {"hacking/opposing", "hacking/usual", "val/reward"}  # the monitor's, and one that is asked for


def test_the_table_of_runs_has_settings_and_names_of_figures(run: MakeRun, tmp_path: Path) -> None:
    run(
        TensorBoardLogger(tmp_path, name="", version="ppo"), Dashboard({"policy": "mine", "ppo.lam": 0.9, "chat": True})
    )
    metadata = read(tmp_path / "ppo").summary_metadata
    start, experiment, end = (
        HParamsPluginData.FromString(metadata[f"_hparams_/{name}"].plugin_data.content)
        for name in ("session_start_info", "experiment", "session_end_info")
    )
    settings = start.session_start_info.hparams
    assert settings["policy"].string_value == "mine"
    assert settings["ppo.lam"].number_value == 0.9
    figures = [metric.name.tag for metric in experiment.experiment.metric_infos]
    assert {"final/em", "final/em_greedy", "influence/kept_fraction"} <= set(figures)
    assert end.session_end_info.status == 1  # success


def test_its_figures_are_final_only_where_the_test_came_after_the_training(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, tmp_path: Path
) -> None:
    trainer, module = make_trainer(Dashboard(), logger=DescribedCurves(tmp_path, name="", version="ppo")), make_module()
    trainer.test(module, data, verbose=False)
    assert "final/em" not in read(tmp_path / "ppo").Tags()["scalars"]
    trainer.fit(module, data)
    (tested,) = trainer.test(module, data, verbose=False)
    (point,) = read(tmp_path / "ppo").Scalars("final/em")
    assert (point.step, point.value) == (1, pytest.approx(tested["test/em"]))


def test_settings_are_the_modules_own_unless_given(run: MakeRun, tmp_path: Path) -> None:
    run(TensorBoardLogger(tmp_path, name="", version="ppo"), Dashboard())
    content = read(tmp_path / "ppo").summary_metadata["_hparams_/session_start_info"].plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["ppo.learning_rate"].number_value == 1e-3
    assert settings["sampling.max_new_tokens"].number_value == 24


class TestAnswers:
    def test_to_the_same_problems_at_first_and_now(self, events: EventAccumulator) -> None:
        texts = events.Tensors("answers/text_summary")
        assert [text.step for text in texts] == [0, 1, 2]
        first, _, last = (text.tensor_proto.string_val[0].decode() for text in texts)
        assert first.count("#### Problem") == last.count("#### Problem") == 2
        assert "after" not in first
        assert last.count("**after 2 more iterations: ") == 2

    def test_are_data_and_no_markup(self) -> None:
        hostile = {"prompt": "2?", "response": "<script>alert(1)</script>\n\n# x", "correct": False, "finished": True}
        text = page([hostile], [hostile], 3)
        assert "<script>" not in text
        assert "    &lt;script&gt;alert(1)&lt;/script&gt;\n    \n    # x" in text

    def test_begin_at_the_beginning_where_a_run_goes_on(self) -> None:
        before = Dashboard()
        before.first_answers, before.baseline = [{"prompt": "a"}], {"em": 0.5}
        after = Dashboard()
        after.load_state_dict(json.loads(json.dumps(before.state_dict())))
        assert (after.first_answers, after.baseline) == (before.first_answers, before.baseline)


class TestRefusals:
    def test_options(self) -> None:
        with pytest.raises(UsageError, match="answers = -1"):
            Dashboard(answers=-1)
        with pytest.raises(UsageError, match=r"settings\['lora'\] = None"):
            Dashboard({"lora": None})  # type: ignore[dict-item]

    def test_another_module(self, make_trainer: MakeTrainer) -> None:
        with pytest.raises(UsageError, match=r"Dashboard = 'BoringModel'"):
            make_trainer(Dashboard()).fit(BoringModel())


def test_with_another_logger_it_is_silent(run: MakeRun, tmp_path: Path) -> None:
    run(CSVLogger(tmp_path, name="", version="csv"), Dashboard())
    header = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()[0]
    assert "val/em" in header
    assert "baseline" not in header


def test_without_a_logger_it_is_silent(run: MakeRun) -> None:
    trainer, _ = run(False, Dashboard())
    assert not [name for name in trainer.callback_metrics if name.startswith("baseline")]
