"""Rotary frequencies that depend on the longest row of a batch: a run stays where they do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parts import MakeTrainer, Recorder, is_odd
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast

from ippo import PPOModule, PromptDataModule
from ippo.data import Task
from ippo.errors import UsageError
from ippo.models import SeparateModels, response_logprobs
from ippo.models.configuration import context_length
from ippo.ppo.options import PPOOptions
from ippo.rollout.sampling import Sampling
from ippo.rollout.sequences import Sequences

SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 1,
}


def longrope(original: int) -> Phi3ForCausalLM:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0], "factor": 8.0}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": original, **factors}
    lengths = {"max_position_embeddings": 256, "original_max_position_embeddings": original}
    return _wide(Phi3ForCausalLM(Phi3Config(**SHAPE, **lengths, rope_parameters=rope)))  # type: ignore[arg-type]


def dynamic(limit: int) -> LlamaForCausalLM:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    return _wide(LlamaForCausalLM(LlamaConfig(**SHAPE, max_position_embeddings=limit, rope_parameters=rope)))  # type: ignore[arg-type]


def _wide(model: Any) -> Any:
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def pair(length: int) -> Sequences:
    """A row of 8 tokens and one of ``length``."""
    ids = torch.randint(2, 320, (2, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids).bool()
    mask[0, 8:] = False
    return Sequences(ids[:, :4], mask[:, :4], ids[:, 4:], mask[:, 4:])


@pytest.mark.parametrize("build", [longrope, dynamic])
def test_the_context_ends_where_a_longer_neighbour_would_change_a_row(build: Any) -> None:
    model = build(16)
    assert context_length(model) == 16
    with torch.no_grad():
        alone = response_logprobs(model, pair(16).rows(torch.tensor([0])).trim())
        for length, same in ((16, True), (24, False)):
            beside = response_logprobs(model, pair(length))[:1, :4]
            assert torch.allclose(beside, alone, rtol=0, atol=1e-5) == same


@pytest.fixture
def longest(task: Task, tokenizer: PreTrainedTokenizerFast) -> int:
    """Tokens of the longest row of the task, and of a response to its longest prompt."""
    rows = [row for split in (task.train, task.gold, task.validation, task.test) for row in split]
    whole = [len(tokenizer(row["prompt"] + row["solution"])["input_ids"]) + 1 for row in rows]
    prompts = [len(tokenizer(row["prompt"])["input_ids"]) + 8 for row in rows]
    return max(*whole, *prompts)


def module(policy: Any, task: Task, tokenizer: PreTrainedTokenizerFast) -> PPOModule:
    ppo = PPOOptions(samples_per_prompt=4, minibatch_size=16, micro_batch_size=2, inner_epochs=1)
    return PPOModule(SeparateModels(policy), tokenizer, is_odd, task.check, ppo, Sampling(max_new_tokens=8))


def test_a_run_that_fits_has_ratios_of_one_and_one_that_does_not_is_refused(
    task: Task,
    tokenizer: PreTrainedTokenizerFast,
    data: PromptDataModule,
    make_trainer: MakeTrainer,
    recorder: Recorder,
    longest: int,
) -> None:
    make_trainer(recorder).fit(module(longrope(longest), task, tokenizer), data)
    assert abs(recorder.curves[0]["ppo/mismatch"]) < 1e-9
    with pytest.raises(UsageError, match=r"the policy's context is 16: shorten or remove the row"):
        make_trainer().fit(module(longrope(16), task, tokenizer), data)
