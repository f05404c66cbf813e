"""The optimizer of policy and critic, and how its rates change from iteration to iteration."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch.optim.lr_scheduler import LambdaLR

from ippo.functional import rate_factor
from ippo.models import ActorCritic
from ippo.ppo.options import PPOOptions


def optimizer_and_schedule(model: ActorCritic, ppo: PPOOptions, iterations: int) -> OptimizerLRSchedulerConfig:
    """One optimizer, with a group for the policy and one for the critic: with two, Lightning counts each step twice.

    Args:
        model: what is trained.
        ppo: rates, schedule and warm-up.
        iterations: of the whole run.
    """
    rates = _rates(ppo)
    groups = [{"params": some, "lr": rates[name], "name": name} for name, some in model.parameter_groups().items()]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    factor = partial(rate_factor, of=iterations, warmup=ppo.warmup, schedule=ppo.schedule)
    return {"optimizer": optimizer, "lr_scheduler": LambdaLR(optimizer, factor)}


def take_up_rates(optimizer: torch.optim.Optimizer, scheduler: Any, ppo: PPOOptions) -> None:
    """Let a run that goes on have the rates and the schedule of its options now, not those of its checkpoint.

    Args:
        optimizer, scheduler: as they came out of the checkpoint; those of a subclass of the module stay as they are.
        ppo: the options now.
    """
    for place, group in enumerate(optimizer.param_groups):
        if isinstance(scheduler, LambdaLR) and (rate := _rates(ppo).get(group.get("name", ""))):
            scheduler.base_lrs[place] = group["initial_lr"] = rate
            group["lr"] = rate * scheduler.lr_lambdas[place](scheduler.last_epoch)


def _rates(ppo: PPOOptions) -> dict[str, float]:
    return {"policy": ppo.learning_rate, "value": ppo.value_learning_rate}
