"""Log-probabilities from hidden states, in optimizer steps: the same numbers and gradients, and fewer logits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from parts import SHAPE
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PreTrainedConfig,
)

from ippo.influence import ExactScorer
from ippo.models import response_logprobs
from ippo.models.adapters import LoraOptions, with_adapter
from ippo.models.layouts import ModelOptions, prepare
from ippo.models.projection import one_backward, projected_logprobs
from ippo.rollout.episodes import Episodes

pytestmark = pytest.mark.skipif(
    not hasattr(nn.functional, "linear_cross_entropy"), reason="this torch has no projection and cross entropy in one"
)
FAMILIES: dict[str, tuple[PreTrainedConfig, bool]] = {  # and whether the head is a projection alone
    "llama, tied": (LlamaConfig(**SHAPE, tie_word_embeddings=True), True),
    "gpt2": (GPT2Config(vocab_size=330, n_embd=16, n_layer=2, n_head=2), True),
    "phi, with a bias": (PhiConfig(**SHAPE), True),
    "gemma2, capped": (Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=30.0), False),
    "granite, scaled": (GraniteConfig(**SHAPE, logits_scaling=8.0), False),
}
Calls = list[int]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """How many tokens each call of torch's own function was for; logits count as many from the first on."""
    found: Calls = []
    own: Callable[..., Tensor] = nn.functional.linear_cross_entropy

    def counted(states: Tensor, *rest: Any, **options: Any) -> Tensor:
        found.append(len(states))
        return own(states, *rest, **options)

    monkeypatch.setattr(nn.functional, "linear_cross_entropy", counted)
    monkeypatch.setattr("ippo.models.responses.LOGITS_AT_A_TIME", 16 * 330 * 5)
    return found


def made(family: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family][0])
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return prepare(model, "separate", ModelOptions()).eval()


def losses(model: Any, episodes: Episodes) -> Tensor:
    weights = torch.linspace(-1, 2, episodes.response_mask.numel()).view(episodes.response_mask.shape)
    return (response_logprobs(model, episodes, 0.7) * episodes.response_mask * weights).sum(1)


def gradients(model: Any, episodes: Episodes) -> dict[str, Tensor]:
    model.zero_grad()
    losses(model, episodes).sum().backward()
    return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_pieces_and_a_head_that_does_more_keeps_its_pieces(
    family: str, rollout: Episodes, calls: Calls
) -> None:
    model = made(family)
    pieces = gradients(model, rollout)
    assert not calls
    with one_backward():
        found = gradients(model, rollout)
    assert calls == ([rollout.response_ids.numel()] if FAMILIES[family][1] else [])
    assert found.keys() == pieces.keys()
    for name, gradient in pieces.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))


def test_adapters_learn_the_same_below_a_frozen_head(rollout: Episodes, calls: Calls) -> None:
    model = with_adapter(made("llama, tied"), LoraOptions(rank=2))
    pieces = gradients(model, rollout)
    with one_backward():
        found = gradients(model, rollout)
    assert calls
    assert all("lora" in name for name in found)
    for name, gradient in pieces.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()) + 1e-9)


def test_log_probabilities_are_those_of_a_hand_worked_head() -> None:
    """Logits log 1, log 3 and log 4: the second token has 3 / (1 + 3 + 4)."""
    head = nn.Linear(1, 3, bias=False)
    head.weight.data = torch.tensor([[1.0], [3.0], [4.0]]).log()
    found = projected_logprobs(head, torch.ones(1, 1, 1), torch.tensor([[1]]), 1.0, 3)
    torch.testing.assert_close(found.exp(), torch.tensor([[0.375]]))


@pytest.mark.parametrize("way", ["ghost", "jvp"])
def test_scores_never_take_it(way: Any, rollout: Episodes, calls: Calls) -> None:
    model = made("llama, tied")
    direction = {name: torch.randn_like(one) for name, one in model.named_parameters()}
    ExactScorer(way).score(model, losses, [rollout], direction)
    assert not calls


@pytest.mark.parametrize("why", ["few logits", "not asked for", "autocast", "a hook on the head"])
def test_elsewhere_nothing_changes(why: str, rollout: Episodes, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    model: LlamaForCausalLM = made("llama, tied")
    if why == "few logits":
        monkeypatch.setattr("ippo.models.responses.LOGITS_AT_A_TIME", 2**24)
    if why == "not asked for":
        prepare(model, "separate", ModelOptions(fused_projection=False))
    if why == "a hook on the head":
        model.lm_head.register_forward_hook(lambda *_: None)
    with torch.autocast("cpu", torch.bfloat16) if why == "autocast" else nullcontext():
        plain = losses(model, rollout)
        with one_backward():
            assert torch.equal(losses(model, rollout), plain)
    assert not calls
