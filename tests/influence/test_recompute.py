"""Layers that checkpoint their activations: hooks give the same numbers, and the memory that was promised is kept."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from ippo.influence import ExactScorer, RandomProjectionScorer
from ippo.influence.backends import ghost_scores_and_norms
from ippo.influence.fused import score_and_backward
from ippo.influence.hooks import UncoveredLayerError, hooked_backward
from ippo.influence.language import causal_lm_losses
from ippo.influence.loop import loop_scores_and_norms
from ippo.influence.parameters import scored


def model(layers: int = 3, checkpointing: bool = False, **shape: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, **shape}
    made = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=layers, num_key_value_heads=1))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if checkpointing:
        made.gradient_checkpointing_enable({"use_reentrant": False})
    return made


@pytest.fixture
def batch() -> dict[str, Tensor]:
    ids = torch.randint(1, 40, (4, 9))
    return {"input_ids": ids, "attention_mask": (torch.arange(9) < torch.tensor([[9], [6], [4], [8]])).long()}


@pytest.fixture
def pair() -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    return model(), model(checkpointing=True)


def direction(module: LlamaForCausalLM) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(one.shape, generator=generator) for name, one in module.named_parameters()}


@pytest.mark.parametrize("parameters", [None, 1, r"layers\.1\.mlp"])
@pytest.mark.parametrize("backend", ["ghost", "jvp", "loop"])
def test_scores_are_the_same(pair: Any, batch: Any, backend: Any, parameters: Any) -> None:
    plain, again = (
        ExactScorer(backend, parameters).score(one, causal_lm_losses, [batch], direction(one)) for one in pair
    )
    torch.testing.assert_close(again, plain)


def test_lengths_of_gradients_are_the_same(pair: Any, batch: Any) -> None:
    expected = loop_scores_and_norms(pair[0], causal_lm_losses, batch, direction(pair[0]))
    with scored(pair[1]):
        found = ghost_scores_and_norms(pair[1], causal_lm_losses, batch, direction(pair[1]))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_layer_that_runs_in_two_blocks_has_one_gradient(batch: Any) -> None:
    module = model(checkpointing=True)
    module.model.layers[2].mlp = module.model.layers[0].mlp
    expected = loop_scores_and_norms(copy.deepcopy(module), causal_lm_losses, batch, direction(module))
    with scored(module):
        found = ghost_scores_and_norms(module, causal_lm_losses, batch, direction(module))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_sketches_and_the_gradient_of_what_is_kept_are_the_same(pair: Any, batch: Any) -> None:
    first, second = (
        RandomProjectionScorer(rank=8).score(one, causal_lm_losses, [batch], direction(one)) for one in pair
    )
    torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-4)
    for one in pair:
        score_and_backward(one, causal_lm_losses, batch, direction(one), lambda scores: (scores > 0).float())
    for one, other in zip(*(list(one.parameters()) for one in pair), strict=True):
        torch.testing.assert_close(other.grad, one.grad)


def test_each_hook_fires_once_a_use_and_afterwards_nothing_is_left(pair: Any, batch: Any) -> None:
    calls: dict[int, list[str]] = {0: [], 1: []}
    for number, module in enumerate(pair):
        module.eval()
        hooked_backward(
            module,
            lambda module=module: causal_lm_losses(module, batch),
            lambda formula, arguments, b, number=number: calls[number].append(formula.name),
        )
        assert all("forward" not in vars(part) for part in module.modules())
        assert all(one.requires_grad and one.grad is None for one in module.parameters())
    assert sorted(calls[0]) == sorted(calls[1])


def test_a_weight_that_is_used_outside_its_layer_is_found_in_a_checkpointed_block(batch: Any) -> None:
    module = model(checkpointing=True).eval()
    mlp = module.model.layers[1].mlp
    plain = mlp.forward
    mlp.forward = lambda x: plain(x) + (x @ mlp.up_proj.weight.T) @ mlp.down_proj.weight.T
    with pytest.raises(UncoveredLayerError, match=r"used outside the forward of the layer that owns it"):
        hooked_backward(module, lambda: causal_lm_losses(module, batch), lambda *_: None)


def peak(function: Any) -> int:
    """The most bytes that are allocated at a time while a function runs, beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        function()
    held = highest = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    return highest


def test_scoring_by_hooks_holds_one_layers_activations_at_a_time() -> None:
    batch = {"input_ids": torch.randint(1, 40, (8, 64))}
    taken = []
    for checkpointing in (False, True):
        module = model(12, checkpointing, hidden_size=32, intermediate_size=96)
        scorer, along = ExactScorer("ghost"), direction(module)
        scorer.score(module, causal_lm_losses, [batch] * 5, along)  # the trial is over, and the first probes are
        taken.append(peak(lambda: scorer.score(module, causal_lm_losses, [batch], along)))  # noqa: B023
    assert taken[1] < taken[0] / 4
