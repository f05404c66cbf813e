"""A training on two ranks whose rollouts come from vLLM: ``python two_vllm_ranks.py MODEL OUT [URL]``.

A program of its own, because Lightning starts the second rank by running it again. Each rank leaves what it has come to
in ``OUT/<rank>.pt``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from transformers import AutoTokenizer, LlamaForCausalLM

from ippo import Episodes, PPOModule, PromptDataModule
from ippo.callbacks import InfluenceFilterCallback
from ippo.data import EmbeddedOptions, embedded_task
from ippo.data.prompts import PromptOptions
from ippo.distributed import rank, world_size
from ippo.influence import TopFraction
from ippo.models import SeparateModels, response_logprobs
from ippo.ppo.options import PPOOptions
from ippo.rollout.engines.vllm import VLLMGenerate
from ippo.rollout.engines.vllm_server import VLLMServer
from ippo.rollout.sampling import Sampling

ITERATIONS = 3


class Watch(Callback):
    """What a rank has drawn in each iteration, and how far its own engine's log-probabilities are from the policy's."""

    def __init__(self) -> None:
        self.prompts: list[list[str]] = []
        self.gaps: list[float] = []
        self.curves: list[dict[str, float]] = []

    def on_rollout_end(self, trainer: L.Trainer, pl_module: Any, episodes: Episodes) -> None:
        mask = episodes.response_mask
        with torch.no_grad():
            expected = response_logprobs(pl_module.model.policy, episodes)
        assert episodes.engine_logprobs is not None
        self.prompts.append(episodes.prompts)
        self.gaps.append(float((episodes.engine_logprobs - expected)[mask].abs().max()))

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.curves.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def odd(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text) % 2) for text in completions]


def main(model: str, out: Path, url: str | None) -> None:
    task = embedded_task(EmbeddedOptions(train_size=48, gold_size=8, validation_size=6, test_size=6, max_steps=2))
    tokenizer = AutoTokenizer.from_pretrained(model)
    policy = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    options: dict[str, Any] = {"kv_cache_memory_bytes": 2**26, "enforce_eager": True}
    engine = VLLMServer(tokenizer, url) if url else VLLMGenerate(tokenizer, **options)
    rates = {"learning_rate": 1e-2, "value_learning_rate": 1e-2}  # so that a stale engine would show
    ppo = PPOOptions(samples_per_prompt=2, minibatch_size=4, unfinished_reward=1.0, **rates)  # type: ignore[arg-type]
    module = PPOModule(
        SeparateModels(policy), tokenizer, odd, task.check, ppo, Sampling(max_new_tokens=12), engine=engine
    )
    watch = Watch()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=ITERATIONS,
        callbacks=[watch, InfluenceFilterCallback(keep=TopFraction(0.5))],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    trainer.fit(module, PromptDataModule(task, PromptOptions(prompts_per_iteration=8)))
    found = {"prompts": watch.prompts, "gaps": watch.gaps, "curves": watch.curves, "ranks": world_size()}
    torch.save({**found, "weights": module.model.state_dict()}, out / f"{rank()}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
