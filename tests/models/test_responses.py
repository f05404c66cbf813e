from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from ippo import Episodes
from ippo.models import response_logits, response_logprobs
from ippo.sequences import Sequences


@torch.no_grad()
def alone(policy: LlamaForCausalLM, sequences: Sequences, row: int, temperature: float = 1.0) -> Tensor:
    """[length] log-probabilities from a plain forward of one row without any padding."""
    prompt = sequences.prompt_ids[row][sequences.prompt_mask[row]]
    response = sequences.response_ids[row][sequences.response_mask[row]]
    logits = policy(torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1)[range(len(response)), response]


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_logprobs_are_those_of_each_row_alone(policy: LlamaForCausalLM, rollout: Episodes, temperature: float) -> None:
    assert not rollout.prompt_mask.all()
    with torch.no_grad():
        logprobs = response_logprobs(policy, rollout, temperature)
    assert logprobs.shape == rollout.response_ids.shape
    for row, mask in enumerate(rollout.response_mask):
        torch.testing.assert_close(logprobs[row][mask], alone(policy, rollout, row, temperature), rtol=0, atol=1e-5)


def test_what_lies_under_the_padding_does_not_matter(policy: LlamaForCausalLM, rollout: Episodes) -> None:
    other = dataclasses.replace(
        rollout,
        prompt_ids=rollout.prompt_ids.where(rollout.prompt_mask, 7),
        response_ids=rollout.response_ids.where(rollout.response_mask, 9),
    )
    with torch.no_grad():
        first, second = response_logprobs(policy, rollout), response_logprobs(policy, other)
    torch.testing.assert_close(first[rollout.response_mask], second[rollout.response_mask], rtol=0, atol=1e-6)


def test_neighbours_and_trimming_do_not_matter(policy: LlamaForCausalLM, rollout: Episodes) -> None:
    with torch.no_grad():
        whole = response_logprobs(policy, rollout)
        for start, chunk in zip((0, 3, 6, 9, 12, 15), rollout.chunks(3), strict=True):
            part = response_logprobs(policy, chunk)
            expected = whole[start : start + 3, : part.shape[1]]
            torch.testing.assert_close(part[chunk.response_mask], expected[chunk.response_mask], rtol=0, atol=1e-5)


def test_logits_are_the_tail_of_the_full_ones(policy: LlamaForCausalLM, gold: Sequences) -> None:
    with torch.no_grad():
        logits = response_logits(policy, gold)
        full = policy(gold.input_ids, attention_mask=gold.attention_mask, position_ids=gold.position_ids).logits
    start = gold.prompt_ids.shape[1] - 1
    assert logits.shape == (*gold.response_ids.shape, policy.config.vocab_size)
    torch.testing.assert_close(logits, full[:, start:-1])
