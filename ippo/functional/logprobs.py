"""From logits to the log-probability and the entropy of each token.

Logits, [n, t, v] with v up to 256,000, are the largest tensor of a training step. Both functions walk through
them a few episodes at a time, so that the float32 working copy stays small (unless autograd has to keep it), and
both serve reverse-mode and forward-mode differentiation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ippo.functional.layout import check_axes

WORKING_COPY = 2**22  # numbers, 16 MiB in float32: large enough to hide the loop, small next to any model's logits


def token_logprobs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """The log-probability of each given token, under the temperature it was sampled at.

    Args:
        logits: [n, t, v], of any floating dtype. Position t must *predict* token t: shift before the call.
        ids: [n, t], token ids in [0, v); any valid id under the padding.
        temperature: the sampling temperature; logits are divided by it.

    Returns:
        [n, t], in nats; float32, also for bfloat16 logits (float64 for float64 ones).

    Raises:
        ValueError: if shapes disagree or the temperature is not positive.

    Example:
        >>> logits = torch.tensor([[[1.0, 3.0, 4.0]]]).log()
        >>> token_logprobs(logits, torch.tensor([[1]])).exp()  # 3 / (1 + 3 + 4)
        tensor([[0.3750]])
        >>> token_logprobs(logits, torch.tensor([[1]]), temperature=0.5).exp()  # 9 / (1 + 9 + 16)
        tensor([[0.3462]])
    """
    check_axes("ntv nt", logits=logits, ids=ids)
    _check_temperature(temperature)
    episodes = []
    rows = _rows_at_a_time(logits)
    for raw, chosen in zip(torch.split(logits, rows), torch.split(ids, rows), strict=True):
        scaled = _scale(raw, temperature)
        episodes.append(scaled.gather(-1, chosen.unsqueeze(-1)).squeeze(-1) - scaled.logsumexp(dim=-1))
    return torch.cat(episodes)


def token_entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The entropy of the distribution from which each token is drawn.

    Args:
        logits: [n, t, v], of any floating dtype; a token ruled out by -inf counts for nothing.
        temperature: the sampling temperature; logits are divided by it.

    Returns:
        [n, t], in nats, between 0 and log v; float32, also for bfloat16 logits (float64 for float64 ones).

    Raises:
        ValueError: if ``logits`` is not [n, t, v] or the temperature is not positive.

    Example:
        >>> token_entropy(torch.tensor([[[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, -float("inf"), -float("inf")]]]))
        tensor([[1.3863, 0.6931]])
    """
    check_axes("ntv", logits=logits)
    _check_temperature(temperature)
    episodes = []
    for raw in torch.split(logits, _rows_at_a_time(logits)):
        logprobs = _scale(raw, temperature).log_softmax(dim=-1)
        surprisal = -logprobs.masked_fill(logprobs == -torch.inf, 0.0)  # 0 * inf is NaN; its limit here is 0
        episodes.append((logprobs.exp() * surprisal).sum(dim=-1))
    return torch.cat(episodes)


def _rows_at_a_time(logits: Tensor) -> int:
    """As many episodes as fit the working copy, at least one."""
    return max(1, WORKING_COPY // max(1, logits[:1].numel()))


def _scale(logits: Tensor, temperature: float) -> Tensor:
    """Logits in at least float32 over the temperature; no copy where both change nothing."""
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return precise if temperature == 1.0 else precise / temperature


def _check_temperature(temperature: float) -> None:
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}; for greedy answers score at 1.0")
