"""What a policy makes of its own answers inside: features that say which are alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ippo.errors import require
from ippo.models.reading import Reading, reading
from ippo.models.sharding import layers_of
from ippo.models.trunk import trunk_of
from ippo.modes import evaluation_mode, uncompiled
from ippo.rollout.sequences import Sequences
from ippo.rollout.sharded import in_parts


@torch.no_grad()
def answer_states(policy: Any, sequences: Sequences, size: int, tokens: float | None = None) -> Tensor:
    """[n, 2 h] float32 hidden states of the policy's middle layer: their mean over an answer, and the one before its
    last token, where an answer is complete and its end token still to come.

    The middle layer: the first ones see words, the last ones the next token. This takes one forward pass of the trunk;
    nothing is kept for a backward.

    Args:
        policy: a causal language model.
        sequences: prompts and responses; of an empty response the features are of its prompt's end.
        size, tokens: rows and tokens at a time, see :meth:`ippo.rollout.sequences.Sequences.places`.

    Raises:
        UsageError: if the policy has no layers that are known as such.
    """
    parts, order = sequences.parts(size, tokens)
    layer = middle_layer(policy)
    with evaluation_mode(policy), uncompiled():
        found = [_of_part(policy, layer, part) for part in parts]
    return torch.cat(found)[order]


def middle_layer(policy: Any) -> nn.Module:
    """The layer whose states are read.

    Raises:
        UsageError: if there is none, or ranks hold parts of the policy, which was not tried.
    """
    whole = "ranks hold parts of it, which was not tried with features: use strategy=ddp, or keep=PositiveScore()"
    require(not in_parts(policy), "keep", f"features of a {type(policy).__name__}", whole)
    layers = layers_of(trunk_of(policy))
    remedy = "its layers are not known as such, so their states cannot be read: use keep=PositiveScore()"
    require(bool(layers), "keep", f"features of a {type(policy).__name__}", remedy)
    return layers[(len(layers) - 1) // 2]


def _of_part(policy: Any, layer: nn.Module, part: Sequences) -> Tensor:
    how: Reading = reading(policy, part)
    seen: list[Tensor] = []

    def read(_: nn.Module, __: Any, answer: Any) -> None:
        seen.append(answer[0] if isinstance(answer, tuple) else answer)

    hook = layer.register_forward_hook(read)
    try:
        trunk_of(policy)(**how.inputs)
    finally:
        hook.remove()
    states = how.before_responses(seen[0]).float()
    mask = part.response_mask.unsqueeze(-1)
    mean = states.masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp(min=1)
    last = (part.lengths - 1).clamp(min=0)
    ends = states[torch.arange(len(states), device=states.device), last.to(states.device)]
    return torch.cat([mean, ends], 1)
