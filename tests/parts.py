"""Plain pieces that several tests are made of; what costs time to make is a fixture in conftest.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from ippo import Episodes, PPOModule
from ippo.influence import Scorer
from ippo.rollout.engines.hf import HFGenerate
from ippo.rollout.sampling import Sampling
from ippo.rollout.sequences import Sequences

MakeModule = Callable[..., PPOModule]
MakeTrainer = Callable[..., L.Trainer]
SHAPE: dict[str, Any] = {
    "vocab_size": 330,  # the tokenizer of the rollout has 320 tokens
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
}
"""Of a small causal language model, of whatever type."""


class Recorder(L.Callback):
    """Keeps what passes by: each iteration's curves, and its episodes as they reach the update."""

    def __init__(self) -> None:
        self.curves: list[dict[str, float]] = []
        self.episodes: list[Episodes] = []

    def on_update_start(self, trainer: L.Trainer, pl_module: L.LightningModule, episodes: Episodes) -> None:
        self.episodes.append(episodes)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.curves.append({name: float(value) for name, value in trainer.callback_metrics.items()})


class Replay(L.Callback):
    """Puts given episodes in the rollout's place, and makes the update's draws the same each time."""

    def __init__(self, episodes: Episodes) -> None:
        self.episodes = episodes

    def on_rollout_end(self, *_: Any) -> Episodes:
        torch.manual_seed(0)
        return self.episodes


class Reseed(L.Callback):
    """Starts the draws of each iteration from its number, whatever Lightning has drawn before it."""

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        torch.manual_seed(trainer.current_epoch)


class Gradients(L.Callback):
    """Keeps the policy's gradient at each optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        module: Any = pl_module
        parameters = module.model.policy.named_parameters()
        self.steps.append({name: parameter.grad.clone() for name, parameter in parameters})


class CountingEngine(HFGenerate):
    """The real engine, counting its rollouts."""

    calls = 0

    def generate(self, policy: Any, prompts: Sequence[str], sampling: Sampling) -> Sequences:
        self.calls += 1
        return super().generate(policy, prompts, sampling)


class GivenScores(Scorer):
    """Scores by decree, one list an iteration."""

    def __init__(self, *iterations: Sequence[float]) -> None:
        self.iterations = list(iterations)

    def score(self, module: Any, losses: Any, batches: Any, direction: Any) -> Tensor:
        return torch.tensor(self.iterations.pop(0))


def push_eos(policy: LlamaForCausalLM, push: float = 1e4) -> LlamaForCausalLM:
    """The policy with ``push`` added to the logit of its eos token, and never sampling its pad token.

    By default it always ends at once.
    """

    def shift(module: Any, inputs: Any, logits: Tensor) -> Tensor:
        bias = torch.zeros_like(logits[0, 0])
        bias[policy.config.pad_token_id], bias[policy.config.eos_token_id] = -1e4, push
        return logits + bias

    policy.lm_head.register_forward_hook(shift)
    return policy


def always(policy: LlamaForCausalLM, token: int) -> LlamaForCausalLM:
    """The policy, with ``token`` the only one that it ever samples."""
    policy.lm_head.register_forward_hook(lambda module, inputs, logits: logits.index_fill(-1, torch.tensor(token), 1e5))
    return policy


def is_odd(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float]:
    """A reward that an untrained policy earns every other time: 1 for a response of an odd number of characters."""
    return [float(len(text) % 2) for text in completions]


def state(module: Any) -> dict[str, Tensor]:
    """A copy of all parameters."""
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def ppo_loss_by_hand(policy: LlamaForCausalLM, episodes: Episodes, row: int, clip: float = 0.2) -> Tensor:
    """The PPO loss of one episode by the paper's formula, on its unpadded tokens; shares no code with ippo."""
    prompt = episodes.prompt_ids[row][episodes.prompt_mask[row]]
    length = int(episodes.response_mask[row].sum())
    response = episodes.response_ids[row, :length]
    logits = policy(torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
    logprobs = logits.log_softmax(-1)[torch.arange(length), response]
    ratio = torch.exp(logprobs - episodes.old_logprobs[row, :length])
    advantages = episodes.advantages[row, :length]
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).mean()


def make_episodes(count: int = 5, **fields: Any) -> Episodes:
    """Episodes without a model behind them, told apart by their rewards 0, 1, 2, ... and of ragged lengths."""
    generator = torch.Generator().manual_seed(0)
    prompt_mask = torch.arange(4) >= 3 - torch.arange(count).unsqueeze(1) % 3  # the first column is always padding
    mask = torch.arange(5) < torch.arange(count).flip(0).unsqueeze(1) % 4 + 1  # and so is the last one

    def numbers() -> Tensor:
        return torch.randn(count, 5, generator=generator) * mask

    episodes = Episodes(
        prompt_ids=torch.randint(1, 99, (count, 4), generator=generator) * prompt_mask,
        prompt_mask=prompt_mask,
        response_ids=torch.randint(1, 99, (count, 5), generator=generator) * mask,
        response_mask=mask,
        prompts=[f"prompt {row}" for row in range(count)],
        responses=[f"response {row}" for row in range(count)],
        rewards=torch.arange(count).float(),
        groups=torch.arange(count) // 2,
        finished=torch.arange(count) % 2 == 0,
        old_logprobs=numbers(),
        reference_logprobs=numbers(),
        values=numbers(),
        advantages=numbers(),
        returns=numbers(),
        weights=torch.ones(count),
        extras={"answer": [None if row == 1 else str(row) for row in range(count)]},
    )
    return replace(episodes, **fields)


def plainly(value: Any) -> str:
    """What a parameter is in a test's name: without addresses, so that pytest-xdist finds each test by its name."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
