"""What PPO cannot train, refused before the first rollout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, Strategy
from torch import Tensor

from ippo.data.demonstrations import require_fit
from ippo.distributed import world_size
from ippo.errors import require
from ippo.models import ActorCritic
from ippo.models.configuration import context_length
from ippo.ppo.gold import gold_share
from ippo.ppo.options import PPOOptions
from ippo.rollout.engines.hf import HFGenerate
from ippo.rollout.engines.hf_check import require_same_when_generated
from ippo.rollout.sampling import Sampling
from ippo.rollout.soundness import require_causal


def require_whole_distribution(sampling: Sampling) -> None:
    """Refuse to learn from what was not drawn, or drawn from a part of the policy's distribution.

    Raises:
        UsageError: if so.
    """
    top_p, temperature = sampling.top_p, sampling.temperature
    require(top_p == 1.0, "sampling.top_p", top_p, "PPO's ratios need the full distribution: use 1.0")
    require(temperature > 0, "sampling.temperature", temperature, "PPO learns from what is drawn: use a number above 0")


def require_strategy(strategy: Strategy | str) -> None:
    """Refuse a strategy that takes models apart otherwise than FSDP2.

    Args:
        strategy: Lightning's, or its name there.

    Raises:
        UsageError: naming it.
    """
    name = strategy.rpartition(".")[2] if isinstance(strategy, str) else type(strategy).__name__
    flattens = name.lower().startswith(("fsdp", "deepspeed")) if isinstance(strategy, str) else False
    flattens = (flattens and name != "fsdp2") or isinstance(strategy, (FSDPStrategy, DeepSpeedStrategy))
    remedy = "it flattens or moves parameters, so that a gradient is no longer known by its name: use fsdp2, or ddp"
    require(not flattens, "trainer.strategy", name, remedy)


def require_parts(model: ActorCritic, ppo: PPOOptions) -> None:
    """Refuse models without a part that the options ask for.

    Raises:
        UsageError: naming the part.
    """
    for part, asked, option in (
        ("value", ppo.uses_values, "value_coef and advantage"),
        ("reference", ppo.uses_reference, "kl_coef"),
    ):
        held = getattr(model, part, ppo) is not None  # a layout that has no such attribute makes it otherwise
        remedy = f"ppo.{option} ask for it: make the models with one, or use advantage=rloo, value_coef=0, kl_coef=0"
        require(held or not asked, "model", f"{type(model).__name__} without a {part}", remedy)


def require_before_training(module: Any) -> None:
    """Refuse what a :class:`ippo.PPOModule` in its trainer cannot learn from, or would learn wrongly.

    Raises:
        UsageError: if precision is too coarse, the policy looks ahead or generates from other probabilities than it
            reads with, a row of the task does not fit into its context, or there are too few gold solutions.
    """
    policy, trainer = module.model.policy, module.trainer
    require_precision(trainer.precision, module.model.parameter_groups())
    require_causal(policy)
    if isinstance(module.engine, HFGenerate):
        require_same_when_generated(policy)
    if task := getattr(getattr(trainer, "datamodule", None), "task", None):
        require_fit(module.tokenizer, task, context_length(policy), module.sampling.max_new_tokens)
    if module.ppo.ptx_coef:
        remedy = f"ppo.ptx_coef draws from it: give each of the {world_size()} ranks a solution"
        require(len(gold_share(module, "training")) > 0, "task.gold", "too few", remedy)


def require_precision(precision: str | int | None, groups: Mapping[str, Sequence[Tensor]]) -> None:
    """Refuse a loss scaler, and weights in half precision.

    Args:
        precision: of the trainer.
        groups: trained parameters, by name.

    Raises:
        UsageError: if the trainer scales losses, or a parameter has less than float32 precision.
    """
    remedy = "its loss scaler would have to see gradients before they are clipped and checked: use bf16-mixed"
    require(precision != "16-mixed", "trainer.precision", precision, remedy)
    remedy = "small steps are lost in it: load the model in torch.float32; trainer.precision=bf16-mixed saves time"
    for name, parameters in groups.items():
        found = {str(one.dtype) for one in parameters if one.dtype not in (torch.float32, torch.float64)}
        require(not found, name, ", ".join(found), remedy)
