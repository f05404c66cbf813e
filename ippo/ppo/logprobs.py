"""The moment between sampling and scoring, at which each response passes through the policy once more."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ippo.influence.forward_mode import ForwardMode
from ippo.models import ActorCritic, response_logprobs
from ippo.ppo.options import PPOOptions
from ippo.rollout.sequences import Sequences
from ippo.rollout.sharded import as_many_calls


@dataclass(frozen=True)
class LogprobPass:
    """Sampled responses on their way to becoming episodes.

    A callback that passes them through the policy anyway may answer ``on_logprob_pass`` with their log-probabilities,
    and with how these change along its direction: then no second pass is made for them.

    Args:
        sequences: prompts and responses.
        logprobs: [n, t] under the policy that sampled.
        logprob_jvps: [n, t] their derivative along a direction.
        forward_mode: whether ``logprobs`` were taken in forward mode, whose kernels round otherwise.
    """

    sequences: Sequences
    logprobs: Tensor | None = None
    logprob_jvps: Tensor | None = None
    forward_mode: bool = False


@torch.no_grad()
def logprob_pass(
    model: ActorCritic, look: LogprobPass, ppo: PPOOptions, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """[n, t] each: log-probabilities of the sampling policy and of the reference, and values.

    Args:
        model: policy, value and reference.
        look: the responses; log-probabilities that it brings along are taken as they are.
        ppo: without a KL penalty the reference is not asked, without a use for values not the critic.
        temperature: at which the responses were sampled.
    """
    ids = look.sequences.response_ids
    precision = torch.promote_types(torch.float32, next(model.policy.parameters()).dtype)  # float64 is kept, too
    old, reference, values = (torch.zeros(ids.shape, dtype=precision, device=ids.device) for _ in range(3))
    places = look.sequences.places(ppo.micro_batch_size, ppo.token_budget)
    for rows in as_many_calls(model.policy, places, ids.device):
        part = look.sequences.rows(rows).trim()
        block = (rows, slice(part.response_ids.shape[1]))
        if look.logprobs is None:
            old[block] = response_logprobs(model.policy, part, temperature).to(precision)
        if ppo.uses_values:
            values[block] = model.values(part).to(precision)
        if ppo.kl_coef:
            # The same kernels on both sides of the divergence: rounding must not look like it.
            with ForwardMode() if look.forward_mode else nullcontext():
                reference[block] = model.reference_logprobs(part, temperature).to(precision)
    old = old if look.logprobs is None else look.logprobs
    return old, (reference if ppo.kl_coef else old), values
