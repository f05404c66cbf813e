"""What a run will take: memory and time."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch

from ippo.doctor.finding import Finding, grade, report

GIB = 2**30


def memory(needed: int, available: int) -> Finding:
    """The run fits: a warning above four fifths of the memory, wrong above all of it.

    Args:
        needed, available: bytes.
    """
    found = f"about {needed / GIB:.2g} GiB and activations, of {available / GIB:.0f} GiB"
    remedy = "lower ppo.micro_batch_size or sampling.max_new_tokens, a smaller policy, or a layout that shares the base"
    return report("memory", grade(needed / available, warning=0.8, wrong=1.0), found, remedy)


def estimate_bytes(parameters: int, width: int, rows: int, tokens: int, vocabulary: int) -> int:
    """Bytes of a run in the layout ``separate``: three models, gradients and two AdamW moments of two of them, and the
    logits of one micro-batch with their gradient and a working copy in float32.

    Args:
        parameters: of the policy.
        width: bytes a parameter.
        rows: episodes in a micro-batch.
        tokens: the longest response.
        vocabulary: rows of the output layer.

    Example:
        >>> estimate_bytes(parameters=10, width=4, rows=2, tokens=3, vocabulary=5)  # 9 * 10 * 4 + 2 * 3 * 5 * (8 + 4)
        720
    """
    return 9 * parameters * width + rows * tokens * vocabulary * (2 * width + 4)


def available_bytes(device: torch.device) -> int:
    """Memory of the device that is not taken by others."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Seconds(NamedTuple):
    """What the phases took on the doctor's own episodes."""

    rollout: float
    scoring: float
    update: float  # one pass


def time(spent: Seconds, episodes: int, wanted: int, inner_epochs: int, iterations: int) -> Finding:
    """Seconds an iteration, scaled up from the doctor's episodes; never wrong, only to be known.

    Args:
        spent: seconds on ``episodes`` of them.
        episodes: the doctor's.
        wanted: episodes of an iteration.
        inner_epochs: passes of the update over them, none dropped.
        iterations: of the run.
    """
    factor = wanted / episodes
    phases = {"rollout": spent.rollout, "scoring": spent.scoring, "update": spent.update * inner_epochs}
    each = sum(phases.values()) * factor
    told = ", ".join(f"{name} {seconds * factor:.1f}" for name, seconds in phases.items())
    found = f"{each:.1f} s an iteration ({told}), {iterations * each / 60:.0f} min for {iterations}"
    return Finding("time", "ok", found)
