"""A run that was interrupted ends bit for bit where an unbroken one does: weights, curves, episodes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
from parts import MakeModule, MakeTrainer
from runs import ITERATIONS, Run, assert_equal, results

from ippo import PromptDataModule
from ippo.callbacks import GracefulStop, InfluenceFilterCallback
from ippo.influence import AdamPreconditioned, RandomMatched, TracInScorer, Uniform

FILTERS: dict[str, Callable[[], list[L.Callback]]] = {
    "plain": list,
    "uniform": lambda: [InfluenceFilterCallback(weight=Uniform(), min_survival=0.0)],
    "random": lambda: [InfluenceFilterCallback(keep=RandomMatched(), min_survival=0.0)],
    "TracIn": lambda: [InfluenceFilterCallback(TracInScorer(snapshots=3), min_survival=0.0)],
    "AdamPreconditioned": lambda: [InfluenceFilterCallback(direction=AdamPreconditioned(), min_survival=0.0)],
}


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
