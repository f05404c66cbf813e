"""Why a training ended, in a word or a sentence."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import Timer

from ippo.callbacks import GracefulStop


def why_stopped(trainer: L.Trainer) -> tuple[str, bool]:
    """What ended the training, and whether that was an interruption: there is more to do, unlike where the filter did.

    The module and the callbacks that end a training say so in ``stopping_reason_message``; Lightning's own limits are
    told by their names.
    """
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for one in (trainer.lightning_module, *callbacks):
        if said := getattr(one, "stopping_reason_message", None):
            return str(said), isinstance(one, GracefulStop)
    if trainer.limit_train_batches == 0:
        return "limit_train_batches", False
    if 0 <= (trainer.max_epochs or 0) <= trainer.current_epoch:
        return "max_epochs", False
    if 0 <= trainer.max_steps <= trainer.global_step:
        return "max_steps", False
    if any(isinstance(one, Timer) and (one.time_remaining() or 0.0) <= 0.0 for one in callbacks):
        return "max_time", False
    return "a callback, which gave no reason", False
