"""The same on a GPU: the iteration, mixed precision, resuming and the recipe. Left out where there is none.

    python -m pytest -k on_a_gpu

What a GPU computes is held against the CPU, which the other tests hold against formulas worked out by hand.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from parts import MakeModule, MakeTrainer, Recorder, Replay, state
from short_runs import Run, results
from torch import Tensor

from ippo import Episodes, PromptDataModule
from ippo.callbacks import GracefulStop, InfluenceFilterCallback
from ippo.influence import (
    AdamPreconditioned,
    ExactScorer,
    LookaheadScorer,
    RandomProjectionScorer,
    TracInScorer,
    Uniform,
)
from ippo.recipes.math import main

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICE, ACCELERATOR = "cuda", "gpu"

FILTERS = {
    "default": lambda: InfluenceFilterCallback.paper(min_survival=0.0),
    "all parameters": lambda: InfluenceFilterCallback.paper(scorer=ExactScorer(), weight=Uniform(), min_survival=0.0),
    "TracIn": lambda: InfluenceFilterCallback.paper(scorer=TracInScorer(snapshots=2), min_survival=0.0),
    "projection": lambda: InfluenceFilterCallback.paper(scorer=RandomProjectionScorer(64), min_survival=0.0),
    "lookahead": lambda: InfluenceFilterCallback.paper(scorer=LookaheadScorer(), min_survival=0.0),
    "Adam": lambda: InfluenceFilterCallback.paper(direction=AdamPreconditioned(), min_survival=0.0),
    "a part of the gold": lambda: InfluenceFilterCallback.paper(direction_rows=3, min_survival=0.0),
}
SMALL = [
    *("--tiny.hidden_size=16", "--tiny.layers=1", "--tiny.heads=2", "--tiny.intermediate_size=32"),
    *("--embedded.train_size=32", "--embedded.gold_size=8", "--embedded.test_size=4", "--embedded.max_steps=2"),
    *("--sft.steps=60", "--sft.batch_size=8", "--sft.learning_rate=0.02", "--evaluation.samples=2"),
    *("--data.prompts_per_iteration=4", "--ppo.samples_per_prompt=2", "--sampling.max_new_tokens=24"),
    *(
        "--filter.min_survival=0",
        "--trainer.max_epochs=2",
        "--trainer.enable_progress_bar=false",
        f"--trainer.accelerator={ACCELERATOR}",
    ),
]


def test_no_kernel_loses_the_gradient_where_a_head_is_peaked(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
) -> None:
    """What ``ippo.models.attention`` is there for: 192 tokens, a mask, and scores of -120 throughout."""
    make_trainer(accelerator=ACCELERATOR, limit_train_batches=0).fit(make_module(), data)
    query, key, value = (0.1 * torch.randn(1, 1, 192, 64, device=DEVICE, dtype=torch.bfloat16) for _ in range(3))
    query[..., 0], key[..., 0] = 1.0, -960.0
    query.requires_grad_()
    mask = torch.ones(192, 192, dtype=torch.bool, device=DEVICE).tril()
    torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[None, None]).sum().backward()
    assert bool(query.grad.isfinite().all())  # type: ignore[union-attr]


class TestIteration:
    @pytest.mark.parametrize("name", FILTERS)
    @pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
    def test_every_filter_runs_and_something_is_learned(
        self,
        make_module: MakeModule,
        make_trainer: MakeTrainer,
        data: PromptDataModule,
        recorder: Recorder,
        name: str,
        precision: Any,
    ) -> None:
        module = make_module()
        before = state(module.model.policy)
        trainer = make_trainer(FILTERS[name](), recorder, accelerator=ACCELERATOR, max_epochs=2, precision=precision)
        trainer.fit(module, data)
        assert len(recorder.curves) == 2
        assert all(0 <= curves["influence/kept_fraction"] <= 1 for curves in recorder.curves)
        assert any(curves["influence/kept_fraction"] > 0 for curves in recorder.curves)
        after = state(module.model.policy)
        assert all(bool(value.isfinite().all()) and value.dtype == torch.float32 for value in after.values())
        assert any(not torch.equal(value.cpu(), before[key].cpu()) for key, value in after.items())

    def test_the_step_is_that_of_the_cpu(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, rollout: Episodes
    ) -> None:
        def trained(accelerator: str) -> dict[str, Tensor]:
            module = make_module(minibatch_size=99)
            where = DEVICE if accelerator == ACCELERATOR else "cpu"
            trainer = make_trainer(FILTERS["default"](), Replay(rollout.to(where)), accelerator=accelerator)
            trainer.fit(module, data)
            return {key: value.cpu() for key, value in state(module.model).items()}

        here, there = trained("cpu"), trained(ACCELERATOR)
        # Adam's first step has the size of the learning rate wherever a gradient is more than rounding.
        apart = [float(((there[key] - value).abs() > 1e-4).float().mean()) for key, value in here.items()]
        assert max(apart) < 0.02

    def test_an_interrupted_run_goes_on(
        self, tmp_path: Path, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        class Interrupt(L.Callback):
            def on_before_optimizer_step(self, trainer: L.Trainer, *_: object) -> None:
                if trainer.current_epoch == 1:
                    trainer.should_stop = True

        run = Run(make_module, functools.partial(make_trainer, accelerator=ACCELERATOR), data)
        whole = results(tmp_path / "whole", run(tmp_path / "whole", FILTERS["default"](), minibatch_size=99))
        run(tmp_path / "parts", FILTERS["default"](), GracefulStop(), Interrupt(), minibatch_size=99)
        again = run(tmp_path / "parts", FILTERS["default"](), resume=True, minibatch_size=99)
        parts = results(tmp_path / "parts", again)
        answers = {
            name: {path: [row["response"] for row in rows] for path, rows in found["episodes"].items()}
            for name, found in (("whole", whole), ("parts", parts))
        }
        assert answers["parts"] == answers["whole"]  # the GPU's own generator is part of the checkpoint
        for key, value in whole["weights"].items():
            torch.testing.assert_close(torch.tensor(parts["weights"][key]), torch.tensor(value), rtol=0, atol=1e-4)


class TestRecipe:
    @pytest.mark.parametrize("layout", ["separate", "shared", "lora"])
    @pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
    def test_runs_from_warm_start_to_summary(self, tmp_path: Path, layout: str, precision: str) -> None:
        words = [*SMALL, f"--trainer.precision={precision}", f"--trainer.default_root_dir={tmp_path}"]
        assert main([*words, f"--layout={layout}"]) == 0
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert summary["stopped_by"] == "max_epochs"
        assert 0 <= summary["trained"]["em"] <= 1
        assert main(["evaluate", f"--checkpoint={tmp_path}", f"--trainer.accelerator={ACCELERATOR}"]) == 0
