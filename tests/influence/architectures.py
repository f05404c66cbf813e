"""Tiny random language models of real architectures, episodes for them, and their scores worked out the slow way."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from parts import ppo_loss_by_hand
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ippo.functional import policy_loss
from ippo.influence.parameters import trainable
from ippo.models import response_logprobs
from ippo.rollout.sequences import Sequences, axis_field

VOCABULARY = 67
PADDING = 1  # has an embedding that is never trained where the architecture says so; responses hold it all the same

# Windows are narrower than the sequences and caps are low, so that both act; dropout is on until scoring turns it off.
_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": PADDING,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "max_position_embeddings": 32,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "attention_dropout": 0.1,
}
_LLAMA: dict[str, Any] = {**_COMMON, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
OPTIONS: dict[str, dict[str, Any]] = {
    "gpt2": {
        **{name: _COMMON[name] for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")},
        "n_positions": 32,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": 48,
    },
    "llama": _LLAMA,
    "qwen2": {**_COMMON, "intermediate_size": 48, "num_key_value_heads": 2},
    "qwen3": _LLAMA,
    "gemma2": {
        **_LLAMA,
        "sliding_window": 4,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "opt": {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.1},
    "phi3": {
        **_COMMON,
        "intermediate_size": 48,
        "num_key_value_heads": 2,
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "original_max_position_embeddings": 32,
        "sliding_window": 4,
    },
    "mistral": {**_LLAMA, "sliding_window": 4},
}
ARCHITECTURES = tuple(OPTIONS)


def build(name: str, tied: bool = True, attention: str | None = None, spread: float = 0.15) -> PreTrainedModel:
    """An untrained model in evaluation mode; no parameter of it is 0 or 1, biases and norm weights included.

    Args:
        name: one of ``ARCHITECTURES``.
        tied: whether the output projection is the embedding.
        attention: ``"eager"`` or ``"sdpa"``; the architecture's own default when None.
        spread: standard deviation of what is added to the weights; the larger, the more rounding is magnified.
    """
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **OPTIONS[name], tie_word_embeddings=tied)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    _disturb(model, spread)
    return model.eval()


def with_lora(model: PreTrainedModel) -> PeftModel:
    """Adapters on all projections of attention and MLP, as they are in the middle of training: B is not zero."""
    torch.manual_seed(1)
    is_transposed = model.config.model_type == "gpt2"
    options: dict[str, Any] = {"target_modules": "all-linear", "lora_dropout": 0.1, "fan_in_fan_out": is_transposed}
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **options))
    _disturb(adapted, 0.15)
    return adapted.eval()


@torch.no_grad()
def _disturb(model: nn.Module, spread: float) -> None:
    for parameter in trainable(model).values():
        parameter.add_(torch.randn_like(parameter), alpha=spread)


@dataclass(frozen=True, eq=False)
class Rollout(Sequences):
    """Sequences with what PPO needs of them."""

    old_logprobs: Tensor = axis_field("token")
    advantages: Tensor = axis_field("token")


def roll_out(policy: nn.Module, prompts: Sequence[int], responses: Sequence[int], blank: int = 0) -> Rollout:
    """Random episodes with the given numbers of tokens, any id also under the padding.

    Args:
        policy: on eval; old log-probabilities are its own, moved by steps of which none ends near the clip range's
            limits, where the loss has kinks that rounding and finite differences would land on either side of.
        prompts, responses: lengths.
        blank: columns that are padding in every row, on each side.
    """
    lengths, ends = torch.tensor(prompts).unsqueeze(1), torch.tensor(responses).unsqueeze(1)
    prompt_mask = torch.arange(max(prompts) + blank).flip(0) < lengths
    response_mask = torch.arange(max(responses) + blank) < ends
    prompt_ids, response_ids = (torch.randint(VOCABULARY, mask.shape) for mask in (prompt_mask, response_mask))
    with torch.no_grad():
        logprobs = response_logprobs(policy, Sequences(prompt_ids, prompt_mask, response_ids, response_mask))
    steps = torch.tensor([-0.5, -0.1, 0.0, 0.1, 0.5])[torch.randint(5, logprobs.shape)]
    old_logprobs, advantages = logprobs.float() + steps, torch.randn(logprobs.shape)
    return Rollout(prompt_ids, prompt_mask, response_ids, response_mask, old_logprobs, advantages)


def losses(policy: nn.Module, rollout: Rollout) -> Tensor:
    """[n] PPO losses."""
    logprobs = response_logprobs(policy, rollout)
    return policy_loss(logprobs, rollout.old_logprobs, rollout.advantages, rollout.response_mask)


def random_direction(policy: nn.Module) -> dict[str, Tensor]:
    return {name: 0.1 * torch.randn_like(parameter) for name, parameter in trainable(policy).items()}


def slow_scores(policy: nn.Module, rollout: Rollout, direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What each parameter adds to the scores, [n] by name: one plain backward an episode, which lies there alone and
    without padding, in a float64 copy. Shares no code with ippo."""
    twin: Any = copy.deepcopy(policy).double().eval()
    parameters = {name: parameter for name, parameter in twin.named_parameters() if parameter.requires_grad}
    alone: Any = rollout
    parts: dict[str, list[Tensor]] = {name: [] for name in parameters}
    for row in range(len(rollout)):
        gradients = torch.autograd.grad(ppo_loss_by_hand(twin, alone, row), list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            parts[name].append((gradient * direction[name].double()).sum())
    return {name: torch.stack(dots) for name, dots in parts.items()}
