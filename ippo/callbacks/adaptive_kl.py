"""A price of divergence that moves until the divergence is what was asked for."""

from __future__ import annotations

import dataclasses
from typing import Any

import lightning as L

from ippo.errors import require
from ippo.functional import adapted_kl_coef


class AdaptiveKL(L.Callback):
    """After each iteration, raises ``ppo.kl_coef`` where the policy is further from the reference than ``target``, and
    lowers it where it is nearer (Ziegler et al. 2019, arXiv 1909.08593, section 2.2). The price is part of checkpoints
    and logged as ``ppo/kl_coef``.

    Args:
        target: divergence to hold, in nats a token, as ``ppo/kl`` measures it.
        rate: K_beta, how fast the price follows.
    """

    def __init__(self, target: float, rate: float = 0.1) -> None:
        require(target > 0, "target", target, "use a divergence above 0, in nats a token")
        require(0 < rate <= 1, "rate", rate, "use a number above 0, at most 1")
        self.target, self.rate = target, rate
        self.kl_coef: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module: Any = pl_module
        require(module.ppo.kl_coef > 0, "ppo.kl_coef", module.ppo.kl_coef, "AdaptiveKL multiplies it: start above 0")
        if self.kl_coef is not None:
            _set(module, self.kl_coef)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        module, kl = pl_module, trainer.callback_metrics.get("ppo/kl")
        coef: float = module.ppo.kl_coef  # type: ignore[assignment, union-attr]
        module.log("ppo/kl_coef", coef)
        if kl is not None:  # not before the first usable episode
            self.kl_coef = adapted_kl_coef(coef, float(kl), self.target, self.rate)
            _set(module, self.kl_coef)

    def state_dict(self) -> dict[str, Any]:
        return {"kl_coef": self.kl_coef}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.kl_coef = state_dict["kl_coef"]


def _set(module: Any, kl_coef: float) -> None:
    module.ppo = dataclasses.replace(module.ppo, kl_coef=kl_coef)
    module.objective = dataclasses.replace(module.objective, ppo=module.ppo)
