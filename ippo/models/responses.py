"""From a Hugging Face model and padded sequences to one number per response token."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from ippo.functional import token_entropy, token_logprobs
from ippo.models.configuration import text_config
from ippo.models.projection import projected_logprobs, projects_in_one
from ippo.models.reading import Reading, as_sampled, reading
from ippo.models.trunk import head_alone, runs_apart, trunk_of, with_states
from ippo.rollout.sequences import Sequences
from ippo.rollout.sharded import in_parts, inside

LOGITS_AT_A_TIME = 2**24  # numbers, 64 MiB in float32: what a small model's whole batch takes, and the least on a GPU


def response_logits(policy: nn.Module, sequences: Sequences) -> Tensor:
    """[n, t, v] logits that predict each response token; the vocabulary projection of the prompt is never computed."""
    return _logits(policy, reading(policy, sequences))


def response_logprobs(policy: nn.Module, sequences: Sequences, temperature: float = 1.0) -> Tensor:
    """[n, t] float32 log-probabilities of the response tokens; padding holds numbers without meaning."""
    return of_logits(policy, sequences, partial(token_logprobs, temperature=temperature), temperature)


def response_logprobs_and_entropy(policy: nn.Module, sequences: Sequences, temperature: float) -> tuple[Tensor, Tensor]:
    """The same, and [n, t] the entropy of the distributions that the tokens were drawn from, in one pass."""

    def both(logits: Tensor, ids: Tensor) -> Tensor:
        return torch.stack([token_logprobs(logits, ids, temperature), token_entropy(logits, temperature)])

    logprobs, entropy = of_logits(policy, sequences, both)
    return logprobs, entropy


def of_logits(
    policy: Any,
    sequences: Sequences,
    function: Callable[[Tensor, Tensor], Tensor],
    logprobs_at: float | None = None,
) -> Tensor:
    """``function`` of the responses' logits, which are never all there at once if they are many.

    Logits are by far the largest tensor of a training step: [n, t, v] with v up to 256,000. Beyond
    :func:`logits_at_a_time` of them the trunk runs once, and the vocabulary projection and ``function`` for a few
    tokens of every episode at a time; the backward pass computes these few logits again rather than keeping them all.
    Both directions of differentiation pass, and hooks see the projection once for each part. A policy whose head does
    not run apart from its trunk has all its logits at once: :func:`ippo.models.trunk.runs_apart`.

    Args:
        policy: a causal language model.
        sequences: prompts and responses.
        function: ``function(logits [n, t, v], ids [n, t]) -> [..., n, t]``, each token by itself.
        logprobs_at: the temperature, where the function is :func:`ippo.functional.token_logprobs`. An optimizer step
            then takes them from the hidden states, where it can: :mod:`ippo.models.projection`.

    Returns:
        [..., n, t]
    """
    ids, how = sequences.response_ids, reading(policy, sequences)
    numbers_a_step = max(1, len(ids)) * text_config(policy).vocab_size
    most = logits_at_a_time(ids.device, getattr(policy, "logits_at_a_time", None))
    few = how.columns * numbers_a_step <= most
    if few or not runs_apart(policy, as_sampled(_corner(sequences)).inputs):
        return function(_logits(policy, how), ids)

    answer: Any = inside(policy, trunk_of(policy), **how.inputs)

    states = how.before_responses(answer.last_hidden_state)
    if logprobs_at is not None and projects_in_one(policy, answer, ids):
        return projected_logprobs(policy.get_output_embeddings(), states, ids, logprobs_at, most)

    def part(states: Tensor, ids: Tensor) -> Tensor:
        states = states.contiguous()  # else a frozen projection multiplies episode by episode
        return function(head_alone(policy, with_states(answer, states), ids), ids)

    # Forward mode keeps no graph, and before torch 2.13 it does not pass through a checkpoint.
    graph = states.requires_grad or any(parameter.requires_grad for parameter in policy.parameters())
    again = graph and torch.is_grad_enabled()
    run = partial(checkpoint, part, use_reentrant=False, preserve_rng_state=False) if again else part
    steps = max(1, most // numbers_a_step)
    with set_checkpoint_early_stop(not in_parts(policy)):  # FSDP must see the end of each call
        return torch.cat([run(*each) for each in zip(states.split(steps, 1), ids.split(steps, 1), strict=True)], dim=-1)


def _logits(policy: Any, how: Reading) -> Tensor:
    kept = policy(**how.inputs, logits_to_keep=how.columns + 1).logits  # a few models do not know it, and give all
    return how.before_responses(kept)


def logits_at_a_time(device: torch.device, asked: int | None = None) -> int:
    """How many logits are there at once, in numbers.

    On a GPU those that a 32nd part of its memory holds, at the 16 bytes that one takes with its float32 copy and both
    gradients: small pieces leave the card waiting. Of all its memory and not of what is free, so that the same run is
    cut into the same pieces.

    Args:
        device: where they are.
        asked: ``models.logits_at_a_time``.
    """
    if asked is not None:
        return asked
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    return max(LOGITS_AT_A_TIME, memory // (32 * 16))


def states_before(trunk: nn.Module, sequences: Sequences) -> Tensor:
    """[n, t, d] hidden states of the trunk at the token before each response token."""
    how = reading(trunk, sequences)
    return how.before_responses(trunk(**how.inputs).last_hidden_state)


def _corner(sequences: Sequences) -> Sequences:
    """A few tokens of two rows, on both sides of where the responses begin."""
    prompt, token = (slice(None, 2), slice(-4, None)), (slice(None, 2), slice(None, 4))
    ids, mask = sequences.response_ids, sequences.response_mask
    return Sequences(sequences.prompt_ids[prompt], sequences.prompt_mask[prompt], ids[token], mask[token])
