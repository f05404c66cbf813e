"""Rewards and checkers: pure functions from texts and columns to numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ippo.rewards.answers import final_answer, is_correct, numeric_reward
from ippo.rewards.steps import CHAIN_CLASSES, ChainClass, Step, classify_chain, parse_step
from ippo.rewards.verifier import NoisyVerifier, WeightedSum

RewardFunction = Callable[..., Sequence[float]]
"""``reward(prompts, completions, **columns) -> list[float]``, the signature known from TRL's GRPO."""

__all__ = [
    "CHAIN_CLASSES",
    "ChainClass",
    "NoisyVerifier",
    "RewardFunction",
    "Step",
    "WeightedSum",
    "classify_chain",
    "final_answer",
    "is_correct",
    "numeric_reward",
    "parse_step",
]
