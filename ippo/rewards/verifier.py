"""A verifier that errs at a known rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from ippo.errors import require
from ippo.rewards.functions import RewardFunction, Rewards

ErrsOn = Literal["both", "right", "wrong"]
"""Which answers a verifier errs on: all; only right ones, which it then misses; only wrong ones, which it lets by."""


class NoisyVerifier:
    """Flips a known share of 0/1 rewards: verifiers and reward models err, and here the rate is exact.

    The flips come from torch's global generator, so a seeded run repeats and a resumed run goes on with the same ones.

    Args:
        reward: the exact reward; must return 0 or 1, or None where it does not apply.
        error_rate: probability, in [0, 1], that the reward of an answer it errs on is flipped.
        errs_on: ``"both"`` right and wrong answers, or one of them alone.

    Raises:
        UsageError: if ``error_rate`` lies outside [0, 1], or ``errs_on`` is none of the three.

    Example:
        >>> exact = lambda prompts, completions, **columns: [1.0, 0.0]
        >>> NoisyVerifier(exact, 1.0)(["p", "p"], ["a", "b"])
        [0.0, 1.0]
        >>> NoisyVerifier(exact, 1.0, errs_on="wrong")(["p", "p"], ["a", "b"])
        [1.0, 1.0]
    """

    def __init__(self, reward: RewardFunction, error_rate: float, errs_on: ErrsOn = "both") -> None:
        require(0.0 <= error_rate <= 1.0, "verifier_error", error_rate, "use a share between 0 and 1")
        require(errs_on in ("both", "right", "wrong"), "verifier_errs_on", errs_on, "use both, right or wrong")
        self.rewards, self.error_rate = Rewards(reward), error_rate
        self._spared = {"both": None, "right": 0.0, "wrong": 1.0}[errs_on]

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[object]
    ) -> list[float | None]:
        exact = self.rewards(prompts, completions, **columns).total
        others = [value for value in exact if value not in (0.0, 1.0, None)]
        require(not others, f"reward {self.rewards.names[0]}", others[:1], "a verifier that errs flips 0 and 1 alone")
        flips = (torch.rand(len(exact)) < self.error_rate).tolist()
        return [
            1.0 - value if flip and value not in (self._spared, None) else value
            for value, flip in zip(exact, flips, strict=True)
        ]
