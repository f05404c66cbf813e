"""A run with everything that a recipe puts around the module, and all that it leaves: for tests of resuming."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from parts import MakeModule, MakeTrainer, state
from pyarrow import parquet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ippo import PromptDataModule
from ippo.callbacks import EpisodeLogger, IterationCheckpoint, NumericGuard, ReproducibleState, RunRecord
from ippo.recipes.run_directory import RunDirectory

ITERATIONS = 4


def drawn(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float]:
    """Rewards that python and numpy draw: a run that loses either generator gets others."""
    return [float(random.random() + numpy.random.rand() + len(text) % 2 > 1) for text in completions]


class Run:
    """Runs in directories of their own, all alike but for what interrupts them."""

    def __init__(self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule) -> None:
        self.make_module, self.make_trainer, self.data = make_module, make_trainer, data

    def __call__(self, folder: Path, *callbacks: L.Callback, resume: bool = False, **options: Any) -> L.Trainer:
        """Train in ``folder`` from a fixed seed, or go on there from a seed that must not matter."""
        for seed in (torch.manual_seed, numpy.random.seed, random.seed):
            seed(99 if resume else 0)
        module = self.make_module(reward=drawn, samples_per_prompt=2, schedule="linear", warmup=1, **options)
        own = (NumericGuard(), EpisodeLogger(), RunRecord(), ReproducibleState())
        trainer = self.make_trainer(
            *callbacks,
            *own,
            IterationCheckpoint(folder / "checkpoints", "{epoch}"),
            max_epochs=ITERATIONS,
            limit_val_batches=1,
            logger=TensorBoardLogger(folder, name="", version="ppo"),
            enable_checkpointing=True,
            default_root_dir=folder,
        )
        checkpoint = RunDirectory(folder, "test", resume=True).newest_checkpoint() if resume else None
        trainer.fit(module, self.data, ckpt_path=checkpoint, weights_only=True)
        return trainer


def results(folder: Path, trainer: L.Trainer) -> dict[str, Any]:
    """Weights, curves and episodes of a run, without the seconds that anything took."""
    events = EventAccumulator(str(folder / "ppo"), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/") and not tag.endswith("/cost")]
    return {
        "weights": {name: value.tolist() for name, value in state(trainer.lightning_module.model).items()},
        "curves": {tag: sorted({(one.step, one.value) for one in events.Scalars(tag)}) for tag in tags},
        "episodes": {path.name: parquet.read_table(path).to_pylist() for path in (folder / "episodes").iterdir()},
    }


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Bit for bit; NaN, a score that could not be taken, equals itself."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert repr(found[name]) == repr(value), name
