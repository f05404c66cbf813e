"""A run that was interrupted ends bit for bit where an unbroken one does: weights, curves, episodes."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning as L
import pytest
import torch
from parts import MakeModule, MakeTrainer
from short_runs import ITERATIONS, Run, assert_equal, results

from ippo import PromptDataModule
from ippo.callbacks import AdaptiveKL, GracefulStop, InfluenceFilterCallback, RewardHackingMonitor
from ippo.influence import AdamPreconditioned, RandomMatched, RewardHackingDetector, TracInScorer, Uniform
from ippo.recipes.math import main

FILTERS: dict[str, Callable[[], list[L.Callback]]] = {
    "plain": list,
    "uniform": lambda: [InfluenceFilterCallback.paper(weight=Uniform(), min_survival=0.0)],
    "monitor": lambda: [InfluenceFilterCallback(min_survival=0.0, dry_run=True), _easily_alarmed()],
    "adaptive price": lambda: [AdaptiveKL(target=0.01, rate=1.0)],
    "random": lambda: [InfluenceFilterCallback.paper(keep=RandomMatched(), min_survival=0.0)],
    "TracIn": lambda: [InfluenceFilterCallback.paper(scorer=TracInScorer(snapshots=3), min_survival=0.0)],
    "part of the gold": lambda: [InfluenceFilterCallback.paper(direction_rows=3, min_survival=0.0)],
    "AdamPreconditioned": lambda: [InfluenceFilterCallback.paper(direction=AdamPreconditioned(), min_survival=0.0)],
}


def _easily_alarmed() -> RewardHackingMonitor:
    return RewardHackingMonitor(detector=RewardHackingDetector(0.01, warmup=1, decision_interval=1e-3, patience=1))


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """A process that a shell puts into the background begins with SIGINT ignored: these tests are about a terminal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class CtrlC(L.Callback):
    """The signal that a terminal sends, in the middle of an update."""

    def on_before_optimizer_step(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("name", FILTERS)
def test_ctrl_c_and_resume_end_where_an_unbroken_run_does(
    tmp_path: Path, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, name: str
) -> None:
    run, make = Run(make_module, make_trainer, data), FILTERS[name]
    unbroken = results(tmp_path / "whole", run(tmp_path / "whole", *make(), minibatch_size=99))
    assert len(unbroken["episodes"]) == ITERATIONS
    if name == "adaptive price":
        assert len({price for _, price in unbroken["curves"]["ppo/kl_coef"]}) == ITERATIONS

    handler, stop = signal.getsignal(signal.SIGINT), GracefulStop()
    trainer = run(tmp_path / "parts", *make(), stop, CtrlC(), minibatch_size=99)
    assert stop.stopping_reason_message == "interrupted by SIGINT"
    assert trainer.current_epoch == 2
    assert len(list((tmp_path / "parts" / "episodes").iterdir())) == 2
    assert signal.getsignal(signal.SIGINT) is handler

    trainer = run(tmp_path / "parts", *make(), resume=True, minibatch_size=99)
    assert_equal(results(tmp_path / "parts", trainer), unbroken)


def test_a_second_ctrl_c_ends_the_run_at_once(
    tmp_path: Path, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):  # by Lightning's own way out
        Run(make_module, make_trainer, data)(tmp_path, GracefulStop(), CtrlC(), CtrlC())
    signal.signal(signal.SIGINT, handler)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_ctrl_c_in_a_recipe_leaves_checkpoint_and_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def press() -> None:
        while not list(tmp_path.glob("episodes/*.parquet")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    sizes = {"tiny.hidden_size": 16, "tiny.layers": 1, "tiny.heads": 2, "tiny.intermediate_size": 32}
    rows = {
        "embedded.train_size": 32,
        "embedded.test_size": 4,
        "evaluation.samples": 2,
        "sft.steps": 0,
        "filter": "none",
    }
    trainer = {"trainer.default_root_dir": tmp_path, "trainer.max_epochs": 99, "trainer.accelerator": "cpu"}
    options = {**sizes, **rows, **trainer, "data.prompts_per_iteration": 4, "trainer.enable_progress_bar": "false"}
    pressing = threading.Thread(target=press)
    pressing.start()
    assert main([f"--{name}={value}" for name, value in options.items()]) == 0
    pressing.join()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["stopped_by"] == "interrupted by SIGINT"
    assert summary["interrupted"]
    assert 0 < len(summary["iterations"]) < 99
    assert summary["sft"]["n"] == 4
    assert summary["trained"] is None  # a test takes long, and whoever stops a run may not want it
    said = capsys.readouterr().out
    assert f"python -m ippo.recipes.math --resume --trainer.default_root_dir {tmp_path}\n" in said
    assert f"python -m ippo.recipes.math evaluate --checkpoint {tmp_path}\n" in said
    assert said.endswith(f"Report: {tmp_path / 'report.html'}\n")
    assert "It was interrupted by SIGINT after" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "answers.json").read_text())["of"] == "validation"
    (path,) = (tmp_path / "checkpoints").iterdir()
    assert torch.load(path, weights_only=True)["epoch"] == len(summary["iterations"]) - 1
