"""What the benchmarks of existing trainings share: a bare trainer, and silence."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import lightning as L
import torch


def make_trainer(callbacks: list[L.Callback], epochs: int, folder: Path) -> L.Trainer:
    return L.Trainer(
        max_epochs=epochs,
        callbacks=callbacks,
        default_root_dir=folder,
        logger=False,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def silence() -> None:
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
