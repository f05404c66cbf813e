r"""LaTeX answers are compared by their meaning, within a time limit that always holds."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path

from ippo.rewards.boxes import LONGEST

_WORKER = Path(__file__).with_name("latex_worker.py")


def latex_equal(gold: str, answer: str, tolerance: float = 0.0, limit: float = 3.0) -> bool | None:
    r"""Whether two LaTeX answers mean the same, by ``math_verify``.

    The comparison runs in a process of its own that is ended when the time is up. ``math_verify`` has a limit too, but
    it rests on signals, which work in a program's main thread only and wait while a large power is being computed.

    Args:
        gold, answer: without dollar signs around them; with them is fine too.
        tolerance: numbers may differ by this much.
        limit: seconds until the comparison is given up.

    Returns:
        None if it could not be told: one of them is no mathematics, or the time was up.

    Example:
        >>> latex_equal(r"\frac{1}{2}", "0.5"), latex_equal("x+1", "1+x"), latex_equal("3", "4")
        (True, True, False)
        >>> latex_equal("5", "9^{9^{9^9}}", limit=0.5) is None
        True
    """
    gold, answer = _bare(gold), _bare(answer)
    if max(len(gold), len(answer)) > LONGEST:
        return None
    return True if gold == answer else _compare(gold, answer, tolerance, limit)


def _bare(text: str) -> str:
    return text.strip().strip("$").strip()


@lru_cache(maxsize=65_536)  # the samples of a prompt say the same few things, and one that hangs costs its limit once
def _compare(gold: str, answer: str, tolerance: float, limit: float) -> bool | None:
    return _judge.compare([gold, answer, tolerance], limit)


class _Judge:
    """One worker process for this process, started when it is first needed and again when it had to be ended."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.worker: subprocess.Popen[str] | None = None

    def compare(self, request: list[object], limit: float) -> bool | None:
        with self.lock:
            worker, expired = self._started(), threading.Event()

            def expire() -> None:
                expired.set()
                worker.kill()

            timer = threading.Timer(limit, expire)
            timer.start()
            try:
                line = self._ask(worker, request)
            finally:
                timer.cancel()
                timer.join()
            if expired.is_set() or not line:
                self.end()
            return json.loads(line) if line else None

    def end(self) -> None:
        """End the worker, if there is one."""
        if self.worker is not None:
            self.worker.kill()
            self.worker.communicate()
            self.worker = None

    def _started(self) -> subprocess.Popen[str]:
        if self.worker is None:
            command = [sys.executable, str(_WORKER)]
            self.worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            if self._ask(self.worker) != "ready\n":  # its imports are not part of anyone's time limit
                raise RuntimeError("math_verify could not be started: see the error above")
        return self.worker

    @staticmethod
    def _ask(worker: subprocess.Popen[str], request: list[object] | None = None) -> str:
        """The worker's next line; empty once it has ended."""
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            if request is not None:
                worker.stdin.write(json.dumps(request) + "\n")
                worker.stdin.flush()
            return worker.stdout.readline()
        except BrokenPipeError:
            return ""


_judge = _Judge()


def _forget_worker() -> None:
    """A forked process shares pipes with its parent, and must not read the parent's answers."""
    global _judge
    _judge = _Judge()


atexit.register(lambda: _judge.end())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_worker)
