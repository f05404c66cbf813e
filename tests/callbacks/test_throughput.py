"""What an iteration's speed is made of, counted from its own episodes and clocks."""

from __future__ import annotations

import pytest
import torch
from parts import MakeModule, MakeTrainer, Recorder
from transformers import LlamaConfig, LlamaForCausalLM

from ippo import PromptDataModule
from ippo.callbacks import Throughput
from ippo.callbacks.throughput import update_flops
from ippo.functional.throughput import pass_flops, peak_flops
from ippo.models import LoraModels, LoraOptions, SeparateModels


def test_curves_are_tokens_over_seconds(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, recorder: Recorder
) -> None:
    speed, module = Throughput(), make_module(inner_epochs=3)
    make_trainer(speed, recorder, max_epochs=2).fit(module, data)
    curves, episodes = recorder.curves[-1], recorder.episodes[-1]
    drawn, trained = int(episodes.lengths.sum()), 3 * int(episodes.attention_mask.sum())
    assert speed.last["time/rollout_tokens"] * curves["time/rollout"] == pytest.approx(drawn)
    assert speed.last["time/update_tokens"] * curves["time/update"] == pytest.approx(trained)
    assert speed.last["time/iteration"] >= curves["time/rollout"] + curves["time/update"]
    assert 0.01 < speed.last["time/memory"] < 1000
    assert "time/peak_share" not in speed.last  # of a CPU no figure is known
    assert speed.last.keys() <= curves.keys()


def small() -> LlamaForCausalLM:
    """Two matrices of 8 x 8 for queries and output, two of 8 x 4 for keys and values, three of 8 x 16; a tied head."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=10,
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=True,
        )
    )


def test_operations_by_hand() -> None:
    layer, head = 2 * 64 + 2 * 32 + 3 * 128, 10 * 8
    policy = 6 * layer * (5 + 3) + 6 * head * 3  # five prompt tokens, three of responses, which alone meet the head
    assert update_flops(SeparateModels(small(), critic=False), 5, 3) == policy
    value = 6 * (layer + 8) * (5 + 3)  # its head of 8 x 1 meets all, and its embeddings are no head's
    assert update_flops(SeparateModels(small()), 5, 3) == policy + value


def test_a_frozen_base_leaves_out_its_own_gradient() -> None:
    models = LoraModels(small(), LoraOptions(rank=2), critic=False)
    layer, head, adapters = (
        2 * 64 + 2 * 32 + 3 * 128,
        10 * 8,
        sum(p.numel() for p in models.policy.parameters() if p.requires_grad),
    )
    assert update_flops(models, 5, 3) == 4 * layer * 8 + 4 * head * 3 + 6 * adapters * 8


def test_known_cards() -> None:
    assert peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("NVIDIA L4") == 121e12
    assert peak_flops("AMD EPYC") is None
    assert pass_flops(10, 10, 1) == 60


def test_a_module_without_models_has_no_operations() -> None:
    assert update_flops(torch.nn.Linear(2, 2), 5, 3) == 0
