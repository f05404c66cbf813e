"""The moment between sampling and scoring, at which each response passes through the policy once more."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ippo.sequences import Sequences


@dataclass(frozen=True)
class LookBack:
    """Sampled responses on their way to becoming episodes.

    A callback that passes them through the policy anyway may answer ``on_look_back`` with their log-probabilities, and
    with how these change along its direction: then no second pass is made for them.

    Args:
        sequences: prompts and responses.
        logprobs: [n, t] under the policy that sampled.
        slopes: [n, t] their derivative along a direction.
    """

    sequences: Sequences
    logprobs: Tensor | None = None
    slopes: Tensor | None = None
