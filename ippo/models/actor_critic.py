"""Policy, value and reference models behind one interface, so that the trainer knows no layout."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ippo.models.responses import model_inputs, response_logprobs
from ippo.sequences import Sequences


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


class ValueModel(nn.Module):
    """A transformer trunk with a linear head: one value a token. The head starts at zero, so the first values are 0."""

    def __init__(self, trunk: nn.Module, hidden_size: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, sequences: Sequences) -> Tensor:
        """[n, t] value of the state before each response token, in float32."""
        hidden = self.trunk(**model_inputs(sequences)).last_hidden_state
        before = hidden[:, sequences.prompt_ids.shape[1] - 1 : -1]
        return self.head(before).squeeze(-1).float()


class SeparateModels(nn.Module):
    """The layout ``separate``: three models of the policy's size, the simplest and the largest.

    The value trunk and the frozen reference start as copies of the policy. The reference stays out of
    ``state_dict``: it is the model that the run started from, and a checkpoint would carry it again every time.

    Args:
        policy: a causal language model, usually after its supervised warm start.
    """

    def __init__(self, policy: PreTrainedModel) -> None:
        super().__init__()
        self.policy: Any = policy
        self.value = ValueModel(copy.deepcopy(policy.base_model), policy.config.hidden_size)
        self.reference = copy.deepcopy(policy).requires_grad_(False)
        self.register_state_dict_post_hook(_leave_out_reference)
        self.register_load_state_dict_pre_hook(_keep_own_reference)

    def values(self, sequences: Sequences) -> Tensor:
        return self.value(sequences)

    @torch.no_grad()
    def reference_logprobs(self, sequences: Sequences, temperature: float) -> Tensor:
        return response_logprobs(self.reference, sequences, temperature)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {name: [p for p in getattr(self, name).parameters() if p.requires_grad] for name in ("policy", "value")}

    def train(self, mode: bool = True) -> SeparateModels:
        """As in torch, but the reference never leaves evaluation mode."""
        super().train(mode)
        self.reference.eval()
        return self


def _leave_out_reference(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Mapping[str, Any]) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}reference.")]:
        del state[key]


def _keep_own_reference(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    reference = module.get_submodule("reference")
    state.update({f"{prefix}reference.{key}": value for key, value in reference.state_dict().items()})
