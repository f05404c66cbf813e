"""A weight of the gold solutions that follows what the scores say of the rewards."""

from __future__ import annotations

import dataclasses
from typing import Any

import lightning as L

from ippo.callbacks.influence.scored import Scored
from ippo.callbacks.influence_filter import InfluenceFilterCallback
from ippo.callbacks.reward_hacking_monitor import knows_gold
from ippo.errors import require
from ippo.functional import agreement


class AdaptivePtx(L.Callback):
    """Trains on the gold solutions the more, the less the rewards ask for what they ask for.

    A filter along the gold direction (``dry_run`` will do) has scored each episode; ``ppo.ptx_coef`` is multiplied by
    1 - a, with a the scores' :func:`ippo.functional.agreement` before any is dropped: by 0 where all agree, by 1 where
    they cancel out, by 2 where all oppose. An iteration that is not scored keeps the factor as it was given. Curves:
    ``ppo/ptx_agreement`` and ``ppo/ptx_coef``.

    Args:
        name: of the filter that is listened to.
    """

    def __init__(self, name: str = "influence") -> None:
        self.name = name

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a trainer in which nobody scores rollouts against gold solutions."""
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        filters = [one for one in callbacks if isinstance(one, InfluenceFilterCallback) and one.unit == "buffer"]
        heard = [one for one in filters if one.name == self.name and knows_gold(one)]
        remedy = "no filter of this name scores rollouts by gold solutions: add one, with dry_run if it shall not act"
        require(bool(heard), "AdaptivePtx.name", self.name, remedy)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module: Any = pl_module
        remedy = "AdaptivePtx multiplies it: start above 0"
        require(module.ppo.ptx_coef > 0, "ppo.ptx_coef", module.ppo.ptx_coef, remedy)
        self.given: float = module.ppo.ptx_coef

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        _set(pl_module, self.given)

    def on_scored(self, trainer: L.Trainer, pl_module: L.LightningModule, scored: Scored) -> None:
        """Before the update: what the scores of all ranks' episodes say."""
        if scored.name == self.name and scored.unit == "buffer":
            agreed = float(agreement(scored.selection.scores))
            pl_module.log("ppo/ptx_agreement", agreed)
            _set(pl_module, self.given * (1 - agreed))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _set(pl_module, self.given)


def _set(module: Any, ptx_coef: float) -> None:
    module.ppo = dataclasses.replace(module.ppo, ptx_coef=ptx_coef)
