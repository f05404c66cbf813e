"""How long work takes on a machine that does other things beside: what reads a model's text must not hang on it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any


def cpu_seconds(work: Callable[[], Any], tries: int = 3) -> float:
    """The quickest of a few tries, in CPU seconds of this thread, without collecting garbage.

    A collection walks through all that the process holds. In a worker that has run a thousand tests this takes
    seconds, and it says nothing of the parser whose turn it happened to be.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return min(_timed(work) for _ in range(tries))
    finally:
        if collects:
            gc.enable()


def _timed(work: Callable[[], Any]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start
