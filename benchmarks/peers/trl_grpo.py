"""Seconds of iterations of TRL's GRPO trainer with its default generation, for ``benchmarks/gpu.py --sections trl``.

TRL is no dependency of this project: ``pip install trl==1.16.0`` (with accelerate and datasets) into the environment
that runs the benchmark; without it the section says so.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def grpo_seconds(
    policy: Any,
    tokenizer: Any,
    prompts: list[str],
    reward: Callable[..., list[float]],
    response: int,
    minibatch: int,
    micro: int,
    iterations: int,
    device: str,
) -> list[float]:
    """Seconds of each iteration but the first: four samples a prompt, two passes over them, no reference.

    Args:
        policy: a causal language model in float32, trained in bfloat16 by autocast on a GPU.
        tokenizer: its own.
        prompts: of one iteration.
        reward: ``reward(completions, **columns)``.
        response: tokens of a response, at most.
        minibatch: episodes an optimizer step.
        micro: episodes in one forward and backward, at most; a divisor of ``minibatch``.
        iterations: that count.
        device: ``"cuda"`` or ``"cpu"``.
    """
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    episodes = 4 * len(prompts)
    steps = 2 * episodes // minibatch  # optimizer steps of an iteration
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if device == "cuda":
                import torch

                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=minibatch // micro,
            steps_per_generation=episodes // micro,
            num_generations=4,
            num_iterations=2,
            max_completion_length=response,
            max_steps=steps * (1 + iterations),
            beta=0.0,
            temperature=1.0,
            learning_rate=1e-6,
            bf16=device == "cuda",
            use_cpu=device == "cpu",
            gradient_checkpointing=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        rows = Dataset.from_list([{"prompt": text} for text in prompts])
        trainer = GRPOTrainer(
            policy, reward, config, train_dataset=rows, processing_class=tokenizer, callbacks=[Clock()]
        )
        trainer.train()
    whole = ends[steps - 1 :: steps]
    return [end - start for start, end in pairwise(whole)]
