"""Trainings on one rank or on two."""

from __future__ import annotations

import copy
import dataclasses
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from launch import DDP, RANKS
from lightning.pytorch.strategies import ModelParallelStrategy
from parts import MakeModule, MakeTrainer, Recorder, state
from training import ITERATIONS, OPTIONS, PROMPTS, ByPrompt, Train, classes

from ippo import PromptDataModule
from ippo.data import Task
from ippo.data.prompts import PromptOptions
from ippo.distributed import whole
from ippo.models import LayoutName, build_models

sys.path.append(str(Path(__file__).parents[1] / "influence"))  # for its tiny models


@pytest.fixture
def train(
    task: Task, tokenizer: Any, make_module: MakeModule, make_trainer: MakeTrainer, request: pytest.FixtureRequest
) -> Train:
    """Three iterations on the same episodes, on one rank or on two; what came of them."""
    if getattr(request, "param", None) == "one gold solution":  # so that both ranks draw the same
        task = dataclasses.replace(task, gold=task.gold[:1] * RANKS)

    def fit(
        ranks: int,
        *callbacks: L.Callback,
        sharded: bool = False,
        layout: LayoutName | None = None,
        judge: bool = False,
        iterations: int = ITERATIONS,
        **options: Any,
    ) -> dict[str, Any]:
        torch.manual_seed(0)
        module, recorder = make_module(engine=ByPrompt(tokenizer), **{**OPTIONS, **options}), Recorder()
        module.judge.check = classes
        strategy: dict[str, Any] = DDP if ranks > 1 else {}
        if layout is not None:
            module.model = build_models(layout, copy.deepcopy(options["policy"]))
        if sharded:
            strategy = {**DDP, "strategy": ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1)}
        data = PromptDataModule(task, PromptOptions(PROMPTS, evaluation_batch_size=2))
        trainer = make_trainer(
            *callbacks,
            recorder,
            max_epochs=iterations,
            limit_val_batches=None if judge else 0,
            **strategy,
        )
        before = trainer.test(module, data, verbose=False)[0] if judge else {}
        trainer.fit(module, data)
        timed = ("time/rollout", "time/score", "time/update", "influence/cost")
        curves = [{name: value for name, value in one.items() if name not in timed} for one in recorder.curves]
        scores = {}
        for table in (episodes.records() for episodes in recorder.episodes):
            for prompt, response, score in zip(
                table["prompt"], table["response"], table.get("score", table["reward"]), strict=True
            ):
                scores[prompt + response] = score
        return {
            "weights": {name: whole(value) for name, value in state(module.model).items()},
            "test": before,
            "curves": curves,
            "scores": scores,
            "stopped_by": [getattr(one, "stopping_reason_message", None) for one in (*callbacks, module)],
        }

    return fit
