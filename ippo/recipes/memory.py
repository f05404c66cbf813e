"""What a run takes of the machine's memory: estimated before it starts, measured in its first iteration."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from typing import Any

import lightning as L
import torch
from jsonargparse import Namespace
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ippo.callbacks.throughput import peak_memory
from ippo.data.task import Rows
from ippo.distributed import largest
from ippo.models.memory import (
    GIB,
    MemoryEstimate,
    Shape,
    blueprint,
    bytes_of,
    estimate_memory,
    free_memory,
    in_parts,
)
from ippo.recipes.warm_start import default_cache

_M_MMAP_THRESHOLD = -3  # malloc.h


def say_memory(
    options: Namespace, policy: PreTrainedModel, prompt: int, console: Console, ranks: int = 1
) -> tuple[MemoryEstimate, int] | None:
    """Print the estimate, what to reduce where it does not fit, and what the warm start will keep on disk, and make
    the process keep to it; of runs that take less than a GiB, nothing.

    Args:
        options: of the recipe.
        policy: as it was loaded.
        prompt: tokens of the longest prompt.
        console: where to print.
        ranks: of how many each keeps a share of the models; 1 where they are whole.

    Returns:
        The estimate and the bytes that are free for it; None where nothing was said.
    """
    found = estimate(options, policy, prompt, ranks)
    if found.total < GIB:
        return None
    give_back_freed_memory()
    console.print(f"Memory{f' of each of {ranks} ranks' if ranks > 1 else ''}: {found}.")
    free = free_memory() + (bytes_of(policy) if ranks == 1 else 0)  # the policy is loaded already
    if advice := found.advice(free):
        console.print(f"[bold]This run {advice}.[/bold]")
    if options.layout != "lora" and options.sft.steps:
        console.print(f"The warm start will be kept in {default_cache()}: {bytes_of(policy) / GIB:.2g} GiB.")
    return found, free


class MeasuredMemory(L.Callback):
    """Holds the estimate against what the first iteration took, and says so: the estimate knows the usual layers alone,
    and the longest episodes that there may be, which the first ones need not have been.

    Args:
        console: where to print.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.estimated: tuple[MemoryEstimate, int] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if pl_module.device.type == "cuda":  # not that of the warm start, or of what was tested before
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self.estimated is None:
            return
        (estimate, free), self.estimated = self.estimated, None
        found = estimate.as_measured(largest(peak_memory(pl_module.device), pl_module.device))
        estimated = f"{estimate.total / GIB:.2g} was estimated"
        self.console.print(f"Memory by the end of the first iteration: {found}, where {estimated}.")
        if found.total > 0.9 * free:
            left = f"{max(0, free - found.total) / GIB:.2g} GiB are left for longer episodes"
            self.console.print(f"[bold]Only {left}; to be safe, reduce {found.largest}.[/bold]")


def give_back_freed_memory() -> None:
    """Let glibc return the memory of freed tensors to the system at once. By default it raises the size from which it
    does so to that of the activations, and keeps their pages, in pieces that no longer fit: of a model trained on a
    CPU the process then grows to twice what its tensors take. Elsewhere than on Linux this does nothing."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, 2**20)


def estimate(options: Namespace, policy: PreTrainedModel, prompt: int, ranks: int = 1) -> MemoryEstimate:
    """The memory that the recipe's options take with this policy, in each process; see :func:`say_memory`."""
    ppo, response = options.ppo, options.sampling.max_new_tokens
    models = blueprint(
        policy, options.layout, options.models, options.lora, critic=ppo.uses_values, reference=ppo.uses_reference
    )
    trained = {name: sum(p.numel() for p in group) for name, group in models.parameter_groups().items()}
    length = prompt + response
    rows = min(ppo.micro_batch_size, ppo.minibatch_size, (ppo.micro_batch_tokens or 10**12) // length)
    drawn = min(256, (options.sampling.batch_tokens or 10**12) // length)
    one_trunk = models.value is None or (options.layout == "shared" and not options.models.value_gradient)
    found = estimate_memory(
        Shape.of(policy),
        bytes_of(models),
        trained["policy"],
        trained["value"],
        (max(1, rows), prompt, response),
        (max(1, drawn), prompt, response),
        trunks=1 if one_trunk else 2,
        gradient_checkpointing=options.models.gradient_checkpointing,
        at_a_time=options.models.logits_at_a_time,
    )
    return in_parts(found, models, ranks) if ranks > 1 else found


def longest_prompt(tokenizer: PreTrainedTokenizerBase, rows: Rows) -> int:
    """Tokens of the longest prompt."""
    return max(map(len, tokenizer([row["prompt"] for row in rows])["input_ids"]))
