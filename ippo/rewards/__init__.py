"""Rewards and checkers: pure functions from texts and columns to numbers."""

from __future__ import annotations

from ippo.rewards.answers import final_answer, is_correct, numeric_reward, same_number
from ippo.rewards.arithmetic import Equation, equations, sound
from ippo.rewards.boxes import boxed_answer
from ippo.rewards.choices import chosen
from ippo.rewards.formats import CHOICES, LATEX, MEASURES, NUMBERS, AnswerFormat
from ippo.rewards.functions import Earned, RewardFunction, Rewards
from ippo.rewards.holes import HOLES, HoledVerifier, HoleName, passes
from ippo.rewards.latex import latex_equal
from ippo.rewards.steps import CHAIN_CLASSES, ChainClass, Step, classify_chain, classify_solution, parse_step
from ippo.rewards.verdicts import Check, Judge, Verdicts
from ippo.rewards.verifier import ErrsOn, NoisyVerifier

__all__ = [
    "AnswerFormat",
    "CHAIN_CLASSES",
    "CHOICES",
    "ChainClass",
    "Check",
    "Earned",
    "Equation",
    "ErrsOn",
    "HOLES",
    "HoleName",
    "HoledVerifier",
    "Judge",
    "LATEX",
    "MEASURES",
    "NUMBERS",
    "NoisyVerifier",
    "RewardFunction",
    "Rewards",
    "Step",
    "Verdicts",
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
    "passes",
    "same_number",
    "sound",
]
