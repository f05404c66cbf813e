"""A process of its own that compares expressions with ``math_verify``, and is ended when the time is up."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

_WORKER = Path(__file__).with_name("latex_worker.py")
_MOST = 65_536  # verdicts that are remembered: the samples of a prompt say the same few things


_PATIENCE = 10  # times its limit may pass on the clock, where the machine has no time for the worker


class TimeUpError(Exception):
    """The time was up before the answer was known."""


class Budget:
    """What one comparison may take in all: seconds of a processor, and pairs of parts that are looked at."""

    def __init__(self, seconds: float, pairs: int = 2048) -> None:
        self.left, self.pairs = seconds, pairs

    def step(self) -> None:
        """One more pair is looked at."""
        self.pairs -= 1
        if self.pairs < 0:
            raise TimeUpError


class Judge:
    """One worker process for this process, started when it is first needed and again when it had to be ended."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.worker: subprocess.Popen[str] | None = None
        self.known: dict[tuple[str, str, float], bool | None] = {}

    def compare(self, gold: str, answer: str, tolerance: float, budget: Budget) -> bool | None:
        """The worker's verdict: None where it cannot read one of them.

        Raises:
            TimeUpError: if the budget is spent. That is not remembered: on an idle machine there may be time enough.
        """
        request = (gold, answer, tolerance)
        if request not in self.known:
            if budget.left <= 0:
                raise TimeUpError
            verdict = self._compare(request, budget)
            if len(self.known) >= _MOST:
                self.known.clear()
            self.known[request] = verdict
        return self.known[request]

    def end(self) -> None:
        """End the worker, if there is one."""
        if self.worker is not None:
            self.worker.kill()
            self.worker.communicate()
            self.worker = None

    def _compare(self, request: tuple[str, str, float], budget: Budget) -> bool | None:
        with self.lock:
            worker, answered, expired = self._started(), threading.Event(), threading.Event()
            begun = _cpu_seconds(worker)

            def watch() -> None:
                patience = time.monotonic() + _PATIENCE * budget.left
                while (left := budget.left - _cpu_seconds(worker) + begun) > 0 and time.monotonic() < patience:
                    if answered.wait(max(left, 0.01)):
                        return
                expired.set()
                worker.kill()

            watcher = threading.Thread(target=watch, daemon=True)
            watcher.start()
            try:
                line = self._ask(worker, request)
            finally:
                answered.set()
                watcher.join()
            budget.left -= max(0.0, _cpu_seconds(worker) - begun)
            if expired.is_set() or not line:
                self.end()
            if expired.is_set() and not line:
                raise TimeUpError
            return json.loads(line) if line else None

    def _started(self) -> subprocess.Popen[str]:
        if self.worker is None:
            command = [sys.executable, str(_WORKER)]
            self.worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            if self._ask(self.worker) != "ready\n":  # its imports are not part of anyone's time limit
                raise RuntimeError("math_verify could not be started: see the error above")
        return self.worker

    @staticmethod
    def _ask(worker: subprocess.Popen[str], request: tuple[str, str, float] | None = None) -> str:
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


def _cpu_seconds(worker: subprocess.Popen[str]) -> float:
    """What ``worker`` has used of a processor; nothing of one that has ended."""
    try:
        used = psutil.Process(worker.pid).cpu_times()
    except psutil.Error:
        return 0.0
    return used.user + used.system


_judge = Judge()


def judge() -> Judge:
    """The one of this process."""
    return _judge


def _forget_worker() -> None:
    """A forked process shares pipes with its parent, and must not read the parent's answers."""
    global _judge
    _judge = Judge()


atexit.register(lambda: _judge.end())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_worker)
