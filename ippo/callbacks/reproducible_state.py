"""The state of every random generator, kept in checkpoints so that a resumed run draws what it would have drawn."""

from __future__ import annotations

import random
from typing import Any, cast

import lightning as L
import numpy
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from ippo.distributed import gather, rank, world_size


class ReproducibleState(L.Callback):
    """Saves and restores torch's, numpy's and python's generators, each rank's own; Lightning's checkpoints leave them
    out.

    The state is tensors alone, because checkpoints are loaded with ``weights_only=True``. It is put back when training
    starts, after the sanity check has drawn from the generators. A run that goes on with another number of ranks keeps
    the generators it was started with: it cannot repeat what the others would have drawn.
    """

    def __init__(self) -> None:
        self._device = torch.device("cpu")
        self._restored: dict[str, Tensor] | None = None

    def state_dict(self) -> dict[str, Tensor]:
        """[ranks, ...] of each generator; every rank must ask at the same time, as ``trainer.save_checkpoint`` does."""
        if world_size() == 1:  # nothing has to move: some devices hold no float64
            return {name: one.unsqueeze(0).cpu() for name, one in _generators().items()}
        return {name: gather(one.unsqueeze(0).to(self._device))[0].cpu() for name, one in _generators().items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        state, self._restored = self._restored, None
        if state is None:
            return
        if len(state["torch"]) != world_size():
            rank_zero_warn(
                f"a run on {len(state['torch'])} ranks goes on with {world_size()}: it will draw other numbers"
            )
            return
        # Cloned: torch reads a generator's state from the start of the storage, whatever part of it the tensor shows.
        _restore({name: ranks[rank()].clone() for name, ranks in state.items()})


def _generators() -> dict[str, Tensor]:
    """The state of each generator of this process, as one row of numbers."""
    _, keys, position, has_gauss, gauss = cast(Any, numpy.random.get_state(legacy=True))
    version, words, spare = random.getstate()
    found = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*keys.tolist(), position, has_gauss]),
        "numpy_gauss": torch.tensor([gauss], dtype=torch.float64),
        "python": torch.tensor([version, *words, spare is not None]),
        "python_gauss": torch.tensor([spare or 0.0], dtype=torch.float64),
    }
    return {**found, "cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else found


def _restore(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    *keys, position, has_gauss = state["numpy"].tolist()
    numpy.random.set_state(
        ("MT19937", numpy.array(keys, dtype=numpy.uint32), position, has_gauss, float(state["numpy_gauss"]))
    )
    version, *words, has_spare = state["python"].tolist()
    random.setstate((version, tuple(words), float(state["python_gauss"]) if has_spare else None))
