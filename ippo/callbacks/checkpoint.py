"""A checkpoint after every iteration, whether or not it updated anything, on disk whole or not at all."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from ippo.files import whole
from ippo.models.checkpoints import facts_of, require_sound_folder


class IterationCheckpoint(ModelCheckpoint):
    """Lightning's checkpoint, also after an iteration without a survivor.

    Lightning skips a step count that it has saved before, but counters and generators have moved on all the same. And
    it writes by way of the system's temporary directory: from another file system a crash could leave half a file.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # leave another one, or a strategy's own, alone
            trainer.strategy.checkpoint_io = WholeCheckpointIO()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_global_step_saved = -1
        super().on_train_epoch_end(trainer, pl_module)


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames: what is called a checkpoint is a complete one, on the disk.

    Raises:
        StorageError: if the file cannot be written, as when the disk is full.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with whole(path) as unfinished, unfinished.open("wb") as file:
            torch.save(checkpoint, file)


def is_whole(path: Path) -> bool:
    """Whether a checkpoint can be read; one that was cut short by a copy or a crash is told and passed over."""
    try:
        if path.is_dir():
            require_sound_folder(path)
        facts_of(path)
    except Exception as error:  # a torn file fails in as many ways as there are places to tear it
        warnings.warn(f"{path} is not a whole checkpoint ({type(error).__name__}): it is passed over", stacklevel=2)
        return False
    return True
