"""Wall-clock seconds of a phase, as a logged metric."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
import torch


class Lap:
    """What a stopwatch shows once its block has ended."""

    seconds = 0.0


_inner = 0.0  # seconds of the stopwatches that ran inside the present one


@contextmanager
def stopwatch(module: L.LightningModule, phase: str, already: float = 0.0, log: bool = True) -> Iterator[Lap]:
    """Log the seconds that the block takes as ``time/<phase>``; a stopwatch inside another takes its time away from it.

    Waits for the GPU's queue on both sides, so that work counts where it was asked for.

    Args:
        module: logs the time.
        phase: its name.
        already: seconds that an earlier part of the same phase took.
        log: False only takes the time.
    """
    global _inner
    lap, outer, start = Lap(), _inner, now(module.device)
    _inner = 0.0
    try:
        yield lap
    finally:
        whole = now(module.device) - start
        lap.seconds = whole - _inner + already
        _inner = outer + whole
    if log:
        module.log(f"time/{phase}", lap.seconds)


def now(device: torch.device) -> float:
    """Seconds of a clock, once a GPU has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
