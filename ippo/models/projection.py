"""Log-probabilities straight from hidden states: torch's projection and cross entropy in one, without all logits.

Beside pieces that the backward pass computes again (:func:`ippo.models.responses.of_logits`) it spares that second
time. It knows one ordinary backward pass alone: no hooks on the head, no forward mode, no second derivative. So it
serves optimizer steps, which say so by :func:`one_backward`, and never scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F

from ippo.models.trunk import head_alone, with_states
from ippo.modes import evaluation_mode

_LARGE = 1e3  # logits at which a cap or a scale shows
_promised: ContextVar[bool] = ContextVar("one_backward", default=False)
_tried: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""For each policy, whether its logits are its projection of the states and nothing else."""


@contextmanager
def one_backward() -> Iterator[None]:
    """Promise that what is computed within goes through one ordinary backward pass."""
    token = _promised.set(True)
    try:
        yield
    finally:
        _promised.reset(token)


def projects_in_one(policy: Any, answer: Any, ids: Tensor) -> bool:
    """Whether :func:`projected_logprobs` makes the policy's log-probabilities here.

    In float32 and above: of half-precision states torch gives half-precision results, some 0.05 nats off.

    Args:
        policy: a causal language model; ``fused_projection`` on it says that this is wanted.
        answer: of its trunk.
        ids: [n, t] token ids, any of which the head is tried with.
    """
    head = policy.get_output_embeddings()
    wanted = _promised.get() and getattr(policy, "fused_projection", False) and hasattr(F, "linear_cross_entropy")
    if not wanted or type(head) is not nn.Linear:
        return False
    if head._forward_hooks or head._forward_pre_hooks or head._backward_hooks or head._backward_pre_hooks:
        return False
    states = answer.last_hidden_state
    autocast = torch.is_autocast_enabled(states.device.type)
    if autocast or states.dtype != head.weight.dtype or states.dtype not in (torch.float32, torch.float64):
        return False
    if policy not in _tried:
        sharded = any(isinstance(part, FSDPModule) for part in policy.modules())  # gathers its weights in forward alone
        with torch.no_grad(), evaluation_mode(policy):
            _tried[policy] = not sharded and _is_projection_alone(policy, head, answer, ids)
    return _tried[policy]


def projected_logprobs(head: nn.Linear, states: Tensor, ids: Tensor, temperature: float, numbers: int) -> Tensor:
    """The log-probability of each token, from the states that the head reads.

    Args:
        head: the vocabulary projection, [v, d], with or without a bias.
        states: [n, t, d] hidden states that predict each token.
        ids: [n, t] token ids.
        temperature: at which they were sampled; logits are divided by it.
        numbers: how many logits there may be at once.

    Returns:
        [n, t], in nats.
    """
    rows = max(1, numbers // head.out_features)
    losses = F.linear_cross_entropy(
        states.reshape(-1, states.shape[-1]) / temperature,
        head.weight,
        ids.reshape(-1),
        linear_bias=None if head.bias is None else head.bias / temperature,
        reduction="none",
        options=nn.LinearCrossEntropyOptions(batch_chunk_size=rows),
    )
    return -losses.view(ids.shape)


def _is_projection_alone(policy: Any, head: nn.Linear, answer: Any, ids: Tensor) -> bool:
    """Tried with states so large that a cap (Gemma-2's) or a scale (Granite's) of the logits cannot hide."""
    states = answer.last_hidden_state[:1, :1]
    states = states * (_LARGE / head(states).abs().max().clamp(min=1e-12))
    expected, found = head_alone(policy, with_states(answer, states), ids[:1, :1]), head(states)
    return expected.shape == found.shape and bool((found - expected).abs().max() <= 1e-5 * _LARGE)
