"""Rewards and checkers: pure functions from texts and columns to numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ippo.rewards.answers import final_answer, is_correct, numeric_reward, same_number
from ippo.rewards.arithmetic import Equation, equations, sound
from ippo.rewards.boxes import boxed_answer
from ippo.rewards.choices import chosen
from ippo.rewards.formats import CHOICES, LATEX, MEASURES, NUMBERS, AnswerFormat
from ippo.rewards.latex import latex_equal
from ippo.rewards.steps import CHAIN_CLASSES, ChainClass, Step, classify_chain, classify_solution, parse_step
from ippo.rewards.verifier import ErrsOn, NoisyVerifier, WeightedSum

RewardFunction = Callable[..., Sequence[float]]
"""``reward(prompts, completions, **columns) -> list[float]``, the signature known from TRL's GRPO."""

__all__ = [
    "AnswerFormat",
    "CHAIN_CLASSES",
    "CHOICES",
    "ChainClass",
    "Equation",
    "ErrsOn",
    "LATEX",
    "MEASURES",
    "NUMBERS",
    "NoisyVerifier",
    "RewardFunction",
    "Step",
    "WeightedSum",
    "boxed_answer",
    "chosen",
    "classify_chain",
    "classify_solution",
    "equations",
    "final_answer",
    "is_correct",
    "latex_equal",
    "numeric_reward",
    "parse_step",
    "same_number",
    "sound",
]
