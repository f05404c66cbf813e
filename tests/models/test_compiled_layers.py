"""Layers that are compiled train and score as they are, with one program for all of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from parts import MakeTrainer, Recorder, is_odd
from torch._dynamo.utils import counters
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ippo import Episodes, PPOModule, PromptDataModule
from ippo.callbacks import InfluenceFilterCallback
from ippo.data import Task
from ippo.errors import UsageError
from ippo.influence import ExactScorer
from ippo.influence.parameters import trainable
from ippo.models import LoraOptions, ModelOptions, SeparateModels, build_models
from ippo.models.layouts import compile_layers
from ippo.ppo.options import PPOOptions
from ippo.rollout.engines.compiled import CompiledGenerate
from ippo.rollout.sampling import Sampling


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("layout", ["separate", "lora"])
def test_losses_gradients_and_scores_are_the_same(
    policy: LlamaForCausalLM, make_module: Any, rollout: Episodes, layout: Any, checkpointing: bool
) -> None:
    options, found = ModelOptions(gradient_checkpointing=checkpointing), []
    for compiled in (False, True):
        torch.manual_seed(0)
        models = build_models(layout, copy.deepcopy(policy), options, LoraOptions(rank=2))
        if compiled:
            compile_layers(models, backend="eager")
        module = make_module()
        losses = module.objective.losses(models.policy, rollout)
        weights = trainable(models.policy)
        gradients = torch.autograd.grad(losses.sum(), list(weights.values()), materialize_grads=True)
        torch.manual_seed(1)
        direction = {name: torch.randn_like(weight) for name, weight in weights.items()}
        scores = [
            ExactScorer(way).score(models.policy, module.objective.losses, [rollout], direction)  # type: ignore[arg-type]
            for way in ("ghost", "jvp")
        ]
        found.append([losses, *gradients, *scores])
    assert 1 <= counters["stats"]["unique_graphs"] <= 4  # with a graph and without, and what tries the model once
    for plain, compiled_one in zip(*found, strict=True):
        torch.testing.assert_close(compiled_one, plain, rtol=1e-5, atol=1e-5 * float(plain.abs().max()) + 1e-12)


@pytest.mark.parametrize("engine", ["hf", "compiled"])
def test_a_run_trains_with_them(
    policy: LlamaForCausalLM,
    task: Task,
    tokenizer: PreTrainedTokenizerFast,
    make_trainer: MakeTrainer,
    data: PromptDataModule,
    recorder: Recorder,
    engine: str,
) -> None:
    models = SeparateModels(policy)
    names = list(models.state_dict())
    compile_layers(models, backend="eager")
    ppo = PPOOptions(samples_per_prompt=2, minibatch_size=8, learning_rate=1e-3, value_learning_rate=1e-3)
    chosen = CompiledGenerate(tokenizer, backend="eager") if engine == "compiled" else None
    module = PPOModule(models, tokenizer, is_odd, task.check, ppo, Sampling(max_new_tokens=16), engine=chosen)
    make_trainer(InfluenceFilterCallback(min_survival=0.0), recorder, max_epochs=2).fit(module, data)
    assert list(models.state_dict()) == names
    # With a graph or without, a mask or none, the reference; at eight torch gives up, and runs layers as they are.
    assert 1 <= counters["stats"]["unique_graphs"] <= 6
    assert max(curves["ppo/mismatch"] for curves in recorder.curves) < 1e-6
    assert max(curves["ppo/engine_gap"] for curves in recorder.curves) < 1e-5


def test_a_model_without_known_layers_is_refused() -> None:
    with pytest.raises(UsageError, match=r"models\.compile_layers = True"):
        compile_layers(torch.nn.Linear(2, 2))
