"""Texts that come first and need no mask: the same numbers from fewer tokens, and flash kernels are not ruled out."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from parts import SHAPE, Gradients, MakeModule, MakeTrainer, Replay
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaForCausalLM,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3MoeConfig,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from ippo import Episodes, PromptDataModule
from ippo.influence import ExactScorer
from ippo.models import LoraOptions, ModelOptions, build_models, response_logits, response_logprobs
from ippo.models.adapters import with_adapter
from ippo.models.reading import reading
from ippo.models.responses import states_before
from ippo.models.trunk import trunk_of
from ippo.ppo.logprobs import LogprobPass, logprob_pass
from ippo.ppo.options import PPOOptions

FAMILIES: dict[str, PreTrainedConfig] = {
    "qwen2": Qwen2Config(**SHAPE),
    "a window": MistralConfig(**SHAPE, sliding_window=7),
    "capped, windows": Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=2.0, sliding_window=7),
    "gpt2": GPT2Config(vocab_size=330, n_embd=16, n_layer=2, n_head=2),
    "opt": OPTConfig(
        vocab_size=330, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16
    ),
    "experts": Qwen3MoeConfig(**SHAPE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8),
    "recurrent": MambaConfig(vocab_size=330, hidden_size=16, num_hidden_layers=2, state_size=4),
}


def losses(model: Any, episodes: Episodes) -> Tensor:
    return (response_logprobs(model, episodes, 0.7) * episodes.response_mask).sum(1)


@pytest.mark.parametrize("at_a_time", [2**24, 16 * 330 * 5], ids=["whole", "in parts"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_losses_gradients_and_scores_are_the_same(kind: str, at_a_time: int, rollout: Episodes) -> None:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(FAMILIES[kind]).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    model.logits_at_a_time = at_a_time
    names = [name for name, _ in model.named_parameters()]
    direction = {name: torch.randn_like(one) for name, one in model.named_parameters()}
    found = []
    for model.padding in ("both", "right"):
        values = losses(model, rollout)
        weights = [model.get_parameter(name) for name in names]
        gradients = torch.autograd.grad(values.sum(), weights, materialize_grads=True)
        scores = ExactScorer().score(model, losses, [rollout], direction)
        found.append([values.detach(), torch.cat([one.flatten() for one in gradients]), scores])
    assert reading(model, rollout).inputs["attention_mask"] is None
    for both, right in zip(*found, strict=True):
        torch.testing.assert_close(right, both, rtol=1e-5, atol=1e-5 * float(both.abs().max()))


@pytest.mark.parametrize("way", ["ghost", "jvp", "loop"])
def test_scores_by_every_backend_are_the_same(policy: LlamaForCausalLM, rollout: Episodes, way: Any) -> None:
    model: Any = with_adapter(policy, LoraOptions(rank=2))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    direction = {name: torch.randn_like(one) for name, one in model.named_parameters() if one.requires_grad}
    found = []
    for model.padding in ("both", "right"):
        found.append(ExactScorer(way).score(model, losses, [rollout], direction))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5 * float(found[0].abs().max()))


@contextmanager
def masks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What attention is given as its mask, and whether it is causal by itself."""
    seen: list[Any] = []
    real = functional.scaled_dot_product_attention

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        seen.append((kwargs.get("attn_mask") is not None, kwargs.get("is_causal", False)))
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(functional, "scaled_dot_product_attention", watched)
        yield seen


@pytest.mark.parametrize("layout", ["separate", "shared", "lora"])
def test_policy_critic_and_reference_have_no_mask_in_any_layout(
    policy: LlamaForCausalLM, rollout: Episodes, layout: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for padding, expected in (("both", (True, False)), ("right", (False, True))):
        models = build_models(layout, copy.deepcopy(policy), ModelOptions(padding=padding))  # type: ignore[arg-type]
        for parts in (
            lambda models=models: response_logprobs(models.policy, rollout),
            lambda models=models: models.values(rollout),
            lambda models=models: models.reference_logprobs(rollout, 1.0),
        ):
            parts()  # a model is tried at its first use
            with masks(monkeypatch) as seen:
                parts()
            assert set(seen) == {expected}


def test_states_and_logits_are_those_of_both_sides(policy: Any, rollout: Episodes) -> None:
    mask = rollout.response_mask
    found = []
    with torch.no_grad():
        for policy.padding in ("both", "right"):
            policy.model.padding = policy.padding
            found.append((response_logits(policy, rollout)[mask], states_before(trunk_of(policy), rollout)[mask]))
    for both, right in zip(*found, strict=True):
        torch.testing.assert_close(right, both, rtol=1e-5, atol=1e-5)


def test_by_default_it_is_for_gpus(policy: LlamaForCausalLM, rollout: Episodes) -> None:
    assert reading(policy, rollout).inputs["attention_mask"] is not None
    assert ModelOptions().padding == "auto"


class Guesses(LlamaForCausalLM):
    """Without a mask, takes all it sees for one text and looks ahead."""

    def forward(self, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> CausalLMOutputWithPast:
        answer = super().forward(*args, attention_mask=attention_mask, **kwargs)
        if attention_mask is None:
            answer.logits = answer.logits + answer.logits.mean(1, keepdim=True)
        return answer


def test_a_model_that_needs_its_mask_keeps_it_which_is_said_once(policy: Any, rollout: Episodes) -> None:
    policy.__class__ = Guesses
    expected = response_logprobs(policy, rollout)
    policy.padding = "right"
    with pytest.warns(UserWarning, match=r"Guesses: without a mask, .* So models\.padding is both"):
        found = response_logprobs(policy, rollout)
    assert torch.equal(found, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        response_logprobs(policy, rollout)


class TestTokensThatAreComputed:
    """Lengths are skewed: one long episode among short ones, several times."""

    @pytest.fixture
    def skewed(self, rollout: Episodes) -> Episodes:
        order = rollout.attention_mask.sum(1).argsort()
        ends = torch.stack([order[:8], order[-8:].flip(0)], 1).flatten()
        return rollout.rows(ends)

    def test_an_update_computes_fewer_and_takes_the_same_steps(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, skewed: Episodes
    ) -> None:
        counts, steps = [], []
        for grouped, padding in ((False, "both"), (True, "both"), (True, "right")):
            module = make_module(minibatch_size=16, micro_batch_size=4, group_by_length=grouped, max_grad_norm=1e9)
            models: Any = module.model
            for part in (models.policy, models.policy.model, models.value.trunk):
                part.padding = padding
            with counted(models.policy.model.embed_tokens) as count:
                gradients = Gradients()
                update: Callable[..., Any] = module.update
                module.update = lambda episodes, c=count, u=update: (c.clear(), u(episodes))  # type: ignore[method-assign]
                make_trainer(Replay(skewed), gradients).fit(module, data)
            counts.append(sum(count))
            steps.append(gradients.steps[0])
        real = int(skewed.attention_mask.sum())
        assert counts[0] > 1.05 * counts[1] >= 1.05 * counts[2] >= 1.05 * real
        assert counts[2] < 1.15 * real
        for other in steps[1:]:
            for name, expected in steps[0].items():
                scale = max(float(one.abs().max()) for one in steps[0].values())
                torch.testing.assert_close(other[name], expected, rtol=1e-5, atol=1e-5 * scale)

    def test_a_logprob_pass_computes_fewer_of_the_same(self, make_module: MakeModule, skewed: Episodes) -> None:
        found, counts = [], []
        for grouped, padding in ((False, "both"), (True, "right")):
            models: Any = make_module().model
            models.policy.padding = padding
            options = PPOOptions(micro_batch_size=4, group_by_length=grouped)
            logprob_pass(models, LogprobPass(skewed), options, 1.0)  # a model is tried at its first use
            with counted(models.policy.model.embed_tokens) as count:
                found.append(logprob_pass(models, LogprobPass(skewed), options, 1.0)[0][skewed.response_mask])
            counts.append(sum(count))
        torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-5)
        assert counts[1] < 0.95 * counts[0]


@contextmanager
def counted(embeddings: torch.nn.Module) -> Iterator[list[int]]:
    """How many tokens each call of a model looks up."""
    counts: list[int] = []
    handle = embeddings.register_forward_hook(lambda module, args, output: counts.append(args[0].numel()))
    try:
        yield counts
    finally:
        handle.remove()
