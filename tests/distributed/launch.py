"""Real processes: forked, joined in a gloo group, and killed if they hang."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RANKS = 2
DDP: dict[str, Any] = {"strategy": "ddp", "devices": RANKS, "accelerator": "cpu"}


def on_ranks(function: Callable[[int], Any], folder: Path, timeout: float = 300.0, ranks: int = RANKS) -> list[Any]:
    """What ``function(rank)`` returns on each rank; tensors, plain numbers and texts in lists and dicts.

    Raises:
        AssertionError: if a rank raises (its traceback is in the output), or has not ended in ``timeout`` seconds.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)

    def run(rank: int) -> None:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank))
        torch.save(function(rank), folder / f"{rank}.pt")

    # Forked, not started anew: they share what the fixtures have made, and need no ten seconds of imports each.
    processes = [multiprocessing.get_context("fork").Process(target=run, args=(rank,)) for rank in range(ranks)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + timeout
    try:
        while any(process.is_alive() for process in processes):
            assert time.monotonic() < deadline, f"the ranks hang: not done after {timeout:.0f} s"
            codes = [process.exitcode for process in processes]
            assert not any(codes), f"a rank failed, exit codes {codes}"
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
            process.join()
    codes = [process.exitcode for process in processes]
    assert codes == [0] * ranks, f"a rank failed, exit codes {codes}"
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
