"""Cells of a comparison without the seconds that a process of its own needs for its imports.

That a cell is a process, and what becomes of one that fails or is interrupted, is tested with processes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import CompletedProcess
from threading import Barrier, Lock
from types import SimpleNamespace

import pytest

from ippo.experiments.comparison import cells
from ippo.recipes.math import main as recipe


@contextmanager
def cells_in_process(at_a_time: int) -> Iterator[None]:
    """Runs of cells take place in this process, one after another. Each waits until ``at_a_time`` of them have been
    started, so that a comparison that starts fewer at a time fails."""
    started, running = Barrier(at_a_time, timeout=60), Lock()

    def run(command: list[str], env: dict[str, str], **_: object) -> CompletedProcess[str]:
        assert command[:3] == [sys.executable, "-m", "ippo.recipes.math"]
        assert env["OMP_NUM_THREADS"] == "1"
        started.wait()
        with running:
            return CompletedProcess(command, recipe(command[3:]), stdout="", stderr="")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "subprocess", SimpleNamespace(run=run))
        yield
