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
from ippo.models.trunk import head_alone, runs_apart, trunk_of, with_states
from ippo.rollout.sequences import Sequences
from ippo.rollout.sharded import in_parts, inside
from ippo.rollout.soundness import minds_left_padding

LOGITS_AT_A_TIME = 2**24  # numbers, 64 MiB in float32: what a small model's whole batch takes, and the least on a GPU


def response_logits(policy: nn.Module, sequences: Sequences) -> Tensor:
    """[n, t, v] logits that predict each response token; the vocabulary projection of the prompt is never computed."""
    if _reads_on_the_left(policy, sequences):
        return _before_responses(policy(**on_the_left(sequences)).logits, sequences, left=True)
    kept = sequences.response_ids.shape[1] + 1  # the token before the response predicts its first token
    logits = policy(**model_inputs(sequences), logits_to_keep=kept).logits
    return logits[:, -kept:-1]  # a few models know no logits_to_keep, and give them all


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
    ids = sequences.response_ids
    numbers_a_step = max(1, len(ids)) * text_config(policy).vocab_size
    most = logits_at_a_time(ids.device, getattr(policy, "logits_at_a_time", None))
    few = ids.shape[1] * numbers_a_step <= most
    if few or not runs_apart(policy, model_inputs(_corner(sequences))):
        return function(response_logits(policy, sequences), ids)

    left = _reads_on_the_left(policy, sequences)
    answer: Any = inside(policy, trunk_of(policy), **(on_the_left if left else model_inputs)(sequences))

    states = _before_responses(answer.last_hidden_state, sequences, left)
    if logprobs_at is not None and projects_in_one(policy, answer, ids):
        return projected_logprobs(policy.get_output_embeddings(), states, ids, logprobs_at, most)

    def part(states: Tensor, ids: Tensor) -> Tensor:
        states = states.contiguous()  # else a frozen projection multiplies episode by episode
        return function(head_alone(policy, with_states(answer, states), ids), ids)

    run = partial(checkpoint, part, use_reentrant=False, preserve_rng_state=False) if torch.is_grad_enabled() else part
    steps = max(1, most // numbers_a_step)
    with set_checkpoint_early_stop(not in_parts(policy)):  # FSDP must see the end of each call
        return torch.cat([run(*each) for each in zip(states.split(steps, 1), ids.split(steps, 1), strict=True)], dim=-1)


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
    left = _reads_on_the_left(trunk, sequences)
    inputs = (on_the_left if left else model_inputs)(sequences)
    return _before_responses(trunk(**inputs).last_hidden_state, sequences, left)


def model_inputs(sequences: Sequences) -> dict[str, Any]:
    """Arguments of a causal language model's forward. The cache is off: nothing is generated here."""
    return {
        "input_ids": sequences.input_ids,
        "attention_mask": sequences.attention_mask,
        "position_ids": sequences.position_ids,
        "use_cache": False,
    }


def on_the_left(sequences: Sequences) -> dict[str, Any]:
    """The same with each row's text in its first columns, and all its padding after it."""
    mask = sequences.attention_mask
    order = mask.sort(dim=1, descending=True, stable=True).indices
    moved = mask.gather(1, order)
    positions = (moved.cumsum(1) - 1).clamp(min=0)
    ids = sequences.input_ids.gather(1, order)
    return {"input_ids": ids, "attention_mask": moved, "position_ids": positions, "use_cache": False}


def _reads_on_the_left(model: nn.Module, sequences: Sequences) -> bool:
    """Whether there is padding before the prompts, and the model minds it."""
    return not bool(sequences.prompt_mask.all()) and minds_left_padding(model)


def _before_responses(hidden: Tensor, sequences: Sequences, left: bool) -> Tensor:
    """[n, t, ...] of [n, s + t, ...]; ``left`` says that the texts are in the first columns."""
    if not left:
        return hidden[:, sequences.prompt_ids.shape[1] - 1 : -1]
    steps = torch.arange(sequences.response_ids.shape[1], device=hidden.device)
    places = sequences.prompt_mask.sum(1, keepdim=True) - 1 + steps
    return hidden[torch.arange(len(hidden), device=hidden.device)[:, None], places]


def _corner(sequences: Sequences) -> Sequences:
    """A few tokens of two rows, on both sides of where the responses begin."""
    prompt, token = (slice(None, 2), slice(-4, None)), (slice(None, 2), slice(None, 4))
    ids, mask = sequences.response_ids, sequences.response_mask
    return Sequences(sequences.prompt_ids[prompt], sequences.prompt_mask[prompt], ids[token], mask[token])
