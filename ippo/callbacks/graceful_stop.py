"""Ctrl-C that loses nothing: the iteration is finished, its checkpoint written, and the run ends as it always does."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_warn


class GracefulStop(L.Callback):
    """The first SIGINT or SIGTERM ends training after the iteration that is running; the second one ends it at once.

    It is enough that one rank gets the signal. Whatever follows ``trainer.fit``, as the figures and the summary of a
    recipe, takes place.
    """

    def __init__(self) -> None:
        self.stopping_reason_message: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stopping_reason_message = None
        if threading.current_thread() is threading.main_thread():  # only there can signals be taken
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._take)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        stop = trainer.strategy.reduce_boolean_decision(self.stopping_reason_message is not None, all=False)
        if stop:
            self.stopping_reason_message = self.stopping_reason_message or "another rank was interrupted"
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._give_back()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._give_back()

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._give_back()
        name = signal.Signals(number).name
        self.stopping_reason_message = f"interrupted by {name}"
        rank_zero_warn(f"{name}: the run ends after this iteration; once more ends it at once")

    def _give_back(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
