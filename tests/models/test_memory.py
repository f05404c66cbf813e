from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ippo.models import LayoutName, LoraOptions, ModelOptions, build_models, response_logprobs
from ippo.models.memory import GIB, MemoryEstimate, Shape, blueprint, bytes_of, estimate_memory
from ippo.rollout.sequences import Sequences

N, S, T = 8, 16, 48
LORA = LoraOptions(rank=4)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    shape: dict[str, Any] = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4}
    return LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2)).eval()


@pytest.fixture
def sequences() -> Sequences:
    ids = torch.randint(0, 300, (N, S + T))
    return Sequences(ids[:, :S], torch.ones(N, S).bool(), ids[:, S:], torch.ones(N, T).bool())


@pytest.mark.parametrize("layout", ["separate", "shared", "lora"])
def test_weights_gradients_and_moments_are_counted_to_the_byte(
    model: LlamaForCausalLM, sequences: Sequences, layout: LayoutName
) -> None:
    empty = blueprint(model, layout, ModelOptions(), LORA)
    assert all(parameter.is_meta for parameter in empty.parameters())
    models = build_models(layout, copy.deepcopy(model), ModelOptions(), LORA)
    groups = models.parameter_groups()
    optimizer = torch.optim.AdamW([parameter for group in groups.values() for parameter in group])
    for group in groups.values():
        for parameter in group:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [tensor for state in optimizer.state.values() for tensor in state.values() if tensor.dim()]
    gradients = [parameter.grad for group in groups.values() for parameter in group]
    held = sum(tensor.numel() * tensor.itemsize for tensor in (*moments, *gradients) if tensor is not None)

    policy, value = (sum(p.numel() for p in empty.parameter_groups()[name]) for name in ("policy", "value"))
    found = estimate_memory(Shape.of(model), bytes_of(empty), policy, value, (N, S, T), (N, S, T))
    assert found.weights == bytes_of(models)
    assert found.training == held + 4 * policy  # and the direction


@pytest.mark.parametrize("lora", [False, True])
def test_activations_are_estimated_within_a_quarter(model: LlamaForCausalLM, sequences: Sequences, lora: bool) -> None:
    models = build_models("lora" if lora else "shared", copy.deepcopy(model), lora=LORA)
    own = {parameter.untyped_storage().data_ptr() for parameter in models.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        response_logprobs(models.policy, sequences)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    found = estimate_memory(Shape.of(model), 0, 0, 0, (N, S, T), (N, S, T), trunks=1)
    logits = 4 * N * T * 300  # one copy is kept; the estimate has three, for the moment when the gradient is there
    assert found.update - 2 * logits == pytest.approx(measured, rel=0.25)


def test_a_cache_by_hand() -> None:
    shape = Shape(layers=2, hidden=8, intermediate=8, vocabulary=10, heads=2, head_size=4, kv_heads=1, itemsize=2)
    found = estimate_memory(shape, 0, 0, 0, (1, 1, 1), (3, 5, 7))
    assert found.rollout == 2 * 2 * 4 * 3 * 12 * 2 + 3 * 4 * 3 * 10


@pytest.mark.parametrize(
    ("sizes", "remedy"),
    [
        ((9, 0, 1, 1, 1), "--layout lora, --trainer.strategy fsdp2 on several cards, or take a smaller policy"),
        ((1, 0, 2, 9, 1), r"ppo\.micro_batch_tokens \(now 9 GiB\) by half, which saves 4.5 GiB"),
        ((1, 0, 2, 1, 9), r"sampling\.batch_tokens \(now 9 GiB\) by half"),
    ],
)
def test_advice_is_about_what_takes_most(sizes: tuple[int, ...], remedy: str) -> None:
    found = MemoryEstimate(*(size * GIB for size in sizes))
    assert found.total == 10 * GIB
    assert found.advice(10 * GIB) == ""
    assert re.match(f"needs about 10 GiB, 8 GiB are free: reduce .*{remedy}", found.advice(8 * GIB))
