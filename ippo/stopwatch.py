"""Wall-clock seconds of a phase, as a logged metric."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
import torch


@contextmanager
def stopwatch(module: L.LightningModule, phase: str) -> Iterator[None]:
    """Log the seconds that the block takes as ``time/<phase>``.

    Waits for the GPU's queue on both sides, so that work counts where it was asked for.
    """
    start = _now(module.device)
    yield
    module.log(f"time/{phase}", _now(module.device) - start)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
