"""Cells of a comparison without the seconds that a new interpreter needs for its imports: in this process, or forked
off it, so that signals can interrupt them. That a cell is started as a command is tested with one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
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


@contextmanager
def cells_forked(said: Path) -> Iterator[None]:
    """Runs of cells are processes of their own; what they print goes to the file ``said``."""

    def run(command: list[str], **_: object) -> CompletedProcess[str]:
        _, status = os.waitpid(fork(lambda: recipe(command[3:]), said), 0)
        return CompletedProcess(command, os.waitstatus_to_exitcode(status), stdout="", stderr=said.read_text())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "subprocess", SimpleNamespace(run=run))
        yield


def fork(run: Callable[[], int], said: Path) -> int:
    """A process in which ``run`` gives the exit status, and whose output goes to the file ``said``. Returns its id."""
    child = os.fork()
    if not child:
        status = 1
        try:
            sys.stdout = sys.stderr = said.open("w", buffering=1)
            status = run()
        finally:
            os._exit(status)
    return child
