"""Policy, value and reference models behind one interface, so that the trainer knows no layout."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ippo.errors import OwnAttributeErrors
from ippo.models.configuration import state_size
from ippo.models.requirements import require_language_model
from ippo.models.responses import response_logprobs, states_before
from ippo.models.trunk import trunk_of
from ippo.rollout.sequences import Sequences
from ippo.rollout.sharded import whole_state

Self = TypeVar("Self", bound="Layout")


class ActorCritic(Protocol):
    """What the trainer asks of the models, whatever they share in memory."""

    @property
    def policy(self) -> Any:
        """The causal language model whose trainable parameters are trained and scored."""

    def values(self, sequences: Sequences) -> Tensor:
        """[n, t] expected return before each response token."""

    def reference_logprobs(self, sequences: Sequences, temperature: float) -> Tensor:
        """[n, t] log-probabilities under the policy as it was before PPO."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters under ``"policy"`` and ``"value"``."""


class ValueHead(nn.Linear):
    """One value a token, in float32 at least. It starts at zero, so the first values are 0."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """[n, t] for [n, t, hidden_size] of any floating dtype; autocast would round the values, too."""
        with torch.autocast(hidden.device.type, enabled=False):
            values = super().forward(hidden.to(self.weight.dtype)).squeeze(-1).clone()  # FSDP wants no views
        return values.to(torch.promote_types(values.dtype, torch.float32))


class ValueModel(nn.Module):
    """A transformer trunk with a linear head: one value a token."""

    def __init__(self, trunk: nn.Module, hidden_size: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = ValueHead(hidden_size)

    def forward(self, sequences: Sequences) -> Tensor:
        """[n, t] value of the state before each response token, in float32."""
        return self.head(states_before(self.trunk, sequences))


class Layout(OwnAttributeErrors, nn.Module):
    """What all layouts have in common: a policy, a critic of its own, and a frozen reference.

    What is frozen stays out of ``state_dict``: it is the model that the run started from, and every checkpoint would
    carry it again.

    Args:
        policy: the causal language model that is trained.
        value: the critic's own parameters; None where nothing asks for values.
        reference: the policy as it was before PPO; None where nothing is held against it.
    """

    start: Mapping[str, Tensor] | None = None
    """What models without numbers will have, by their names (:func:`ippo.models.sharding.to_be_sharded`)."""

    def __init__(self, policy: PreTrainedModel, value: nn.Module | None, reference: PreTrainedModel | None) -> None:
        super().__init__()
        self.policy: Any = policy
        self.value = value
        self.reference = reference if reference is None else reference.requires_grad_(False)
        frozen = {name for name, p in self.named_parameters(remove_duplicate=False) if not p.requires_grad}
        self._left_out = {key for key in self.state_dict() if key in frozen or key.startswith("reference.")}
        self.register_state_dict_post_hook(_leave_out)
        self.register_load_state_dict_pre_hook(_keep_own)

    def values(self, sequences: Sequences) -> Tensor:
        """[n, t] value of the state before each response token."""
        assert self.value is not None
        return self.value(sequences)

    @torch.no_grad()
    def reference_logprobs(self, sequences: Sequences, temperature: float) -> Tensor:
        """[n, t] log-probabilities under the policy as it was before PPO."""
        assert self.reference is not None
        return response_logprobs(self.reference, sequences, temperature)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters under ``"policy"`` and ``"value"``."""
        held = {"policy": self.policy, "value": self.value}
        parameters = {name: [] if model is None else model.parameters() for name, model in held.items()}
        return {name: [one for one in found if one.requires_grad] for name, found in parameters.items()}

    def train(self: Self, mode: bool = True) -> Self:
        """As in torch, but the reference never leaves evaluation mode, and layers that checkpoint their activations
        never leave training mode, the only one in which Hugging Face's do so; what they hold, dropout too, obeys."""
        super().train(mode)
        if self.reference is not None:
            self.reference.eval()
        trained = [part for model in (self.policy, self.value) if model is not None for part in model.modules()]
        for part in trained:
            if isinstance(part, GradientCheckpointingLayer):
                part.training = mode or part.gradient_checkpointing
        return self

    def merged(self) -> tuple[PreTrainedModel, dict[str, Tensor]]:
        """A plain model of the policy's kind, and the trained weights by the names that it has for them; of models in
        parts the first rank alone gets them, and all must ask."""
        return self.policy, whole_state(self.policy)


class SeparateModels(Layout):
    """The layout ``separate``: three models of the policy's size, the simplest and the largest.

    The value trunk and the frozen reference start as copies of the policy.

    Args:
        policy: a causal language model, usually after its supervised warm start.
        critic: whether there is one; without it, only PPO options that use no values will do.
        reference: whether there is one; without it, only those without a KL penalty.
    """

    def __init__(self, policy: PreTrainedModel, critic: bool = True, reference: bool = True) -> None:
        require_language_model(policy)
        value = ValueModel(copy.deepcopy(trunk_of(policy)), state_size(policy)) if critic else None
        super().__init__(policy, value, copy.deepcopy(policy) if reference else None)


def _leave_out(module: Layout, state: dict[str, Tensor], prefix: str, metadata: Mapping[str, Any]) -> None:
    for key in module._left_out:
        del state[prefix + key]


def _keep_own(module: Layout, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    tensors = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    state.update({prefix + name: tensor for name, tensor in tensors if name in module._left_out})
