"""The layout ``lora``: low-rank adapters (arXiv 2106.09685) for policy and critic on one frozen base.

There is one set of base weights and no adapter is ever switched: policy, value and reference are module trees of their
own over the same tensors, and each tree holds its own adapter or none. So whatever walks through the policy (scorers,
hooks, checkpointing that runs a layer again) finds the policy's parameters and no others.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ippo.errors import UsageError, require
from ippo.models.actor_critic import Layout, ValueModel
from ippo.models.configuration import state_size
from ippo.models.requirements import require_language_model
from ippo.models.trunk import trunk_of
from ippo.rollout.adapters import merged_weights
from ippo.rollout.sharded import in_parts, kept_by_first, whole_state

Model = TypeVar("Model", bound=PreTrainedModel)


@dataclass(frozen=True)
class LoraOptions:
    """Adapters of the layout ``lora``.

    Args:
        rank: of each adapter's two factors.
        alpha: their product is scaled by alpha / rank.
        targets: layers that get one: ``"all-linear"`` (all but the output head), a regular expression that matches
            their full names, or their last names, as ``"q_proj,v_proj"``.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: str = "all-linear"

    def __post_init__(self) -> None:
        require(self.rank >= 1, "lora.rank", self.rank, "use a whole number of at least 1")
        require(self.alpha > 0, "lora.alpha", self.alpha, "use a number above 0")
        require(bool(self.targets), "lora.targets", self.targets, "use all-linear, a regular expression or last names")


class LoraModels(Layout):
    """One frozen base in memory: the policy is base and adapter, the critic base, adapter and head, the reference the
    base alone. ``state_dict`` holds adapters and head.

    Args:
        policy: the base, usually after its supervised warm start; it is frozen, and is the reference from now on.
        lora: see :class:`LoraOptions`.
        critic: see :class:`ippo.models.SeparateModels`. The reference takes no memory of its own.
    """

    def __init__(self, policy: PreTrainedModel, lora: LoraOptions = LoraOptions(), critic: bool = True) -> None:
        require_language_model(policy)
        value = ValueModel(with_adapter(trunk_of(policy), lora), state_size(policy)) if critic else None
        super().__init__(with_adapter(policy, lora), value, policy)

    def merged(self) -> tuple[PreTrainedModel, dict[str, Tensor]]:
        """The base, which stays as it is, and its weights with the policy's adapter added to them."""
        plain: Any = self.reference
        merged = merged_weights(self.policy)
        return plain, {**whole_state(plain), **(kept_by_first(merged) if in_parts(plain) else dict(merged))}


def shared_copy(model: Model) -> Model:
    """Another tree of the same modules over the very same parameters."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def with_adapter(model: Model, lora: LoraOptions) -> Model:
    """A :func:`shared_copy` with a new adapter; ``model`` is frozen and otherwise left alone.

    The adapter starts without effect and is kept in float32 whatever the base is kept in: its steps would be lost in
    the eight bits of a bfloat16.

    Raises:
        UsageError: if no layer fits ``lora.targets``, or one of them shares its weight with another.
    """
    adapted = shared_copy(model)
    names = [name.strip() for name in lora.targets.split(",")]
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        target_modules=names if all(name.isidentifier() for name in names) else lora.targets,
        exclude_modules=_no_plain_projections(model),
        fan_in_fan_out=any(isinstance(part, Conv1D) for part in model.modules()),
    )
    try:
        adapted.add_adapter(config)
    except ValueError as error:
        raise UsageError("lora.targets", lora.targets, str(error).splitlines()[0]) from error
    tables: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    tied = tables[1] is not None and tables[0].weight is tables[1].weight
    ends = (adapted.get_input_embeddings(), adapted.get_output_embeddings())
    apart = not tied or not any(isinstance(part, LoraLayer) for part in ends)
    remedy = "this model's input and output embeddings are one tensor, which cannot have an adapter at one end"
    require(apart, "lora.targets", lora.targets, remedy)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def _no_plain_projections(model: nn.Module) -> list[str]:
    """Linear layers with a forward of their own, such as routers that return several tensors: an adapter beside them
    would add to what is no product."""
    linear = ((name, type(part)) for name, part in model.named_modules() if isinstance(part, nn.Linear))
    return [name for name, kind in linear if kind.forward is not nn.Linear.forward]


@torch.no_grad()
def merge_into(model: PreTrainedModel, adapted: PreTrainedModel) -> None:
    """Add the adapter of ``adapted``, made by :func:`with_adapter`, to the weights that it shares with ``model``."""
    for name, weight in merged_weights(adapted):
        model.get_parameter(name).copy_(weight)
