from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lightning as L
import numpy
import pytest
import torch
from parts import MakeModule, MakeTrainer, state

from ippo import PromptDataModule
from ippo.callbacks import InfluenceFilterCallback, ReproducibleState


def draw() -> list[float]:
    """From each generator, and from its Gaussian, which keeps a spare number."""
    return [
        torch.rand(()).item(),
        torch.randn(()).item(),
        numpy.random.rand(),
        numpy.random.standard_normal(),
        random.random(),
        random.gauss(0.0, 1.0),
    ]


class DrawAtStart(L.Callback):
    def on_train_start(self, *_: Any) -> None:
        self.drawn = draw()


def test_a_checkpoint_brings_all_three_generators_back(
    tmp_path: Path, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
) -> None:
    for seed in (torch.manual_seed, numpy.random.seed, random.seed):
        seed(5)
    draw()  # leaves a spare Gaussian in numpy and in python
    trainer = make_trainer(ReproducibleState())
    trainer.fit(make_module(), data)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    expected = draw()
    assert "ReproducibleState" in torch.load(tmp_path / "one.ckpt", weights_only=True)["callbacks"]

    for seed in (torch.manual_seed, numpy.random.seed, random.seed):
        seed(99)
    look = DrawAtStart()
    trainer = make_trainer(ReproducibleState(), look, max_epochs=2, limit_val_batches=1, num_sanity_val_steps=1)
    trainer.fit(make_module(), data, ckpt_path=tmp_path / "one.ckpt")
    assert look.drawn == expected


def test_a_new_run_is_not_touched(make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule) -> None:
    drawn = []
    for callbacks in ([], [ReproducibleState()]):
        look = DrawAtStart()
        torch.manual_seed(3)
        numpy.random.seed(3)
        random.seed(3)
        make_trainer(*callbacks, look).fit(make_module(), data)
        drawn.append(look.drawn)
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("validate", [0, 1])
def test_a_resumed_run_ends_where_an_unbroken_one_does(
    tmp_path: Path, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, validate: int
) -> None:
    def fit(iterations: int, checkpoint: Path | None = None) -> tuple[L.Trainer, dict[str, torch.Tensor]]:
        module = make_module(samples_per_prompt=2)
        callbacks = (InfluenceFilterCallback.paper(min_survival=0.0), ReproducibleState())
        trainer = make_trainer(*callbacks, max_epochs=iterations, limit_val_batches=validate)
        trainer.fit(module, data, ckpt_path=checkpoint)
        return trainer, state(module.model)

    torch.manual_seed(0)
    _, unbroken = fit(4)
    torch.manual_seed(0)
    trainer, _ = fit(2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    torch.manual_seed(77)
    _, resumed = fit(4, tmp_path / "two.ckpt")
    assert all(torch.equal(value, unbroken[name]) for name, value in resumed.items())
