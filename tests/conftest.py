"""A tiny real task, its tokenizer, a policy, and what is built from them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hypothesis import settings
from parts import CountingEngine, MakeModule, MakeTrainer, Recorder, is_odd, push_eos
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ippo import Episodes, PPOModule, PromptDataModule
from ippo.data import Columns, EmbeddedOptions, Task, columns, embedded_task
from ippo.data.demonstrations import encode_demonstrations
from ippo.data.prompts import PromptOptions
from ippo.models import SeparateModels, TinyOptions, tiny_llama, train_tokenizer
from ippo.ppo.objective import PolicyObjective
from ippo.ppo.options import EvaluationOptions, PPOOptions
from ippo.rewards import RewardFunction
from ippo.rollout.engines.base import RolloutEngine
from ippo.rollout.sampling import Sampling
from ippo.rollout.sequences import Sequences

# The same commit gives the same verdict, on a busy machine too.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's warm starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPPO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def task() -> Task:
    sizes = EmbeddedOptions(
        train_size=48, gold_size=8, validation_size=6, test_size=6, max_steps=2, verifier_error=0.25
    )
    return embedded_task(sizes)


@pytest.fixture(scope="session")
def tokenizer(task: Task) -> PreTrainedTokenizerFast:
    return train_tokenizer([row["prompt"] + row["solution"] for row in task.train], vocab_size=320)


@pytest.fixture(scope="session")
def shared_policy(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Untrained, but with weights wide enough to prefer some tokens, and ending its responses after about ten.

    Training it would make the tests hang on the last bit of every sum. To change it, take ``policy``.
    """
    torch.manual_seed(0)
    policy = tiny_llama(tokenizer, TinyOptions(hidden_size=32, layers=2, heads=2, intermediate_size=48, context=64))
    for parameter in policy.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    return push_eos(policy, 3.0).eval()


@pytest.fixture
def policy(shared_policy: LlamaForCausalLM) -> LlamaForCausalLM:
    return copy.deepcopy(shared_policy)


@pytest.fixture(scope="session")
def make_module(task: Task, tokenizer: PreTrainedTokenizerFast, shared_policy: LlamaForCausalLM) -> MakeModule:
    """A fresh module on a copy of the policy; further keywords are PPO options."""

    def make(
        policy: LlamaForCausalLM = shared_policy,
        reward: RewardFunction = is_odd,
        sampling: Sampling = Sampling(max_new_tokens=24),
        engine: RolloutEngine | None = None,
        objective: Any = PolicyObjective,
        evaluation: EvaluationOptions = EvaluationOptions(samples=2),
        **ppo: Any,
    ) -> PPOModule:
        small: dict[str, Any] = {"samples_per_prompt": 4, "inner_epochs": 1, "minibatch_size": 8, "micro_batch_size": 8}
        small["group_by_length"] = False  # scores by decree are given in the order of the episodes
        rates: dict[str, Any] = {"learning_rate": 1e-3, "value_learning_rate": 1e-3, "kl_coef": 0.02}
        options = PPOOptions(**{**small, **rates, **ppo})
        models = SeparateModels(copy.deepcopy(policy))
        further = {"engine": engine, "objective": objective}
        return PPOModule(models, tokenizer, reward, task.check, options, sampling, evaluation, **further).eval()

    return make


@pytest.fixture(scope="session")
def batch(task: Task) -> Columns:
    return columns(task.train[:4])


@pytest.fixture(scope="session")
def rollout(make_module: MakeModule, batch: Columns) -> Episodes:
    """16 real episodes of many lengths, finished and not, rewarded and not."""
    torch.manual_seed(0)
    episodes = make_module().roll_out(batch)
    assert 0 < episodes.rewards.sum() < episodes.finished.sum() < len(episodes)
    assert len(set(episodes.lengths.tolist())) > 5
    return episodes


@pytest.fixture(scope="session")
def shifted(make_module: MakeModule) -> PPOModule:
    """A module whose policy has moved on from the one that sampled ``rollout``: its ratios are not 1. Shared."""
    module = make_module()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.model.policy.parameters():
            parameter += 0.005 * torch.randn_like(parameter)
    return module


@pytest.fixture(scope="session")
def gold(task: Task, tokenizer: PreTrainedTokenizerFast) -> Sequences:
    return encode_demonstrations(tokenizer, task.gold, 64, "gold")


@pytest.fixture
def data(task: Task) -> PromptDataModule:
    return PromptDataModule(task, PromptOptions(prompts_per_iteration=4, evaluation_batch_size=4))


@pytest.fixture
def make_trainer(tmp_path: Path) -> MakeTrainer:
    """A silent trainer with the given callbacks; keywords are trainer options."""

    def make(*callbacks: L.Callback, **options: Any) -> L.Trainer:
        defaults: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
        }
        return L.Trainer(**{**defaults, **options}, callbacks=list(callbacks))

    return make


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def engine(tokenizer: PreTrainedTokenizerFast) -> CountingEngine:
    return CountingEngine(tokenizer)
