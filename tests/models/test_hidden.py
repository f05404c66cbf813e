"""Features of answers: the middle layer's states, whatever the padding."""

from __future__ import annotations

import pytest
import torch
from parts import SHAPE
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaForCausalLM, OPTConfig, PreTrainedConfig, Qwen2Config

from ippo import Episodes
from ippo.errors import UsageError
from ippo.models import LoraOptions, ModelOptions, build_models
from ippo.models.hidden import answer_states, middle_layer

FAMILIES: dict[str, PreTrainedConfig] = {
    "qwen2": Qwen2Config(**SHAPE),
    "gpt2": GPT2Config(vocab_size=330, n_embd=16, n_layer=2, n_head=2),
    "opt": OPTConfig(
        vocab_size=330, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16
    ),
}


def by_hand(policy: LlamaForCausalLM, episodes: Episodes, row: int, layer: int) -> torch.Tensor:
    """One answer by itself, without padding, by Hugging Face's own output."""
    prompt = episodes.prompt_ids[row][episodes.prompt_mask[row]]
    answer = episodes.response_ids[row][episodes.response_mask[row]]
    with torch.no_grad():
        states = policy(torch.cat([prompt, answer]).unsqueeze(0), output_hidden_states=True).hidden_states[layer][0]
    before = states[len(prompt) - 1 : -1]
    return torch.cat([before.mean(0), before[-1]])


def test_are_the_states_before_each_token_of_the_middle_layer(policy: LlamaForCausalLM, rollout: Episodes) -> None:
    found = answer_states(policy, rollout, size=5)
    assert found.shape == (len(rollout), 2 * 32)
    for row in range(len(rollout)):
        assert torch.allclose(found[row], by_hand(policy, rollout, row, layer=1), atol=1e-5)


@pytest.mark.parametrize("padding", ["both", "right"])
@pytest.mark.parametrize("tokens", [None, 64.0])
def test_do_not_depend_on_padding_or_on_batches(
    policy: LlamaForCausalLM, rollout: Episodes, padding: str, tokens: float | None
) -> None:
    expected = answer_states(policy, rollout, size=1)
    policy.padding = padding  # type: ignore[assignment]
    assert torch.allclose(answer_states(policy, rollout, 16, tokens), expected, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_of_other_families(family: str, rollout: Episodes) -> None:
    torch.manual_seed(0)
    policy = AutoModelForCausalLM.from_config(FAMILIES[family])
    found = answer_states(policy.train(), rollout, size=16)
    assert found.shape == (len(rollout), 32)
    assert torch.allclose(found[:4], answer_states(policy, rollout.rows(torch.arange(4)), 4), atol=1e-5)
    assert policy.training
    assert not found.requires_grad
    assert len(found.unique(dim=0)) > len(rollout) // 2


def test_of_a_policy_with_adapters(policy: LlamaForCausalLM, rollout: Episodes) -> None:
    models = build_models("lora", policy, ModelOptions(), LoraOptions(rank=2))
    assert torch.allclose(answer_states(models.policy, rollout, 16), answer_states(policy, rollout, 16), atol=1e-5)


def test_refuses_a_policy_whose_layers_are_not_known(policy: LlamaForCausalLM) -> None:
    policy.model.layers = nn.ModuleList()
    with pytest.raises(UsageError, match="PositiveScore"):
        middle_layer(policy)
