"""The state of every random generator, kept in checkpoints so that a resumed run draws what it would have drawn."""

from __future__ import annotations

import random
from typing import Any, cast

import lightning as L
import numpy
import torch


class ReproducibleState(L.Callback):
    """Saves and restores torch's, numpy's and python's generators; Lightning's checkpoints leave them out.

    The state is plain numbers and tensors, because checkpoints are loaded with ``weights_only=True``. It is put back
    when training starts, after the sanity check has drawn from the generators.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        kind, keys, position, has_gauss, gauss = cast(Any, numpy.random.get_state(legacy=True))
        version, words, spare = random.getstate()
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": {"kind": str(kind), "keys": keys.tolist(), "rest": [int(position), int(has_gauss), float(gauss)]},
            "python": {"version": version, "words": list(words), "spare": spare},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        state, self._restored = self._restored, None
        if state is None:
            return
        torch.set_rng_state(state["torch"])
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"])
        numbers, old = state["numpy"], state["python"]
        numpy.random.set_state((numbers["kind"], numpy.array(numbers["keys"], dtype=numpy.uint32), *numbers["rest"]))
        random.setstate((old["version"], tuple(old["words"]), old["spare"]))
