"""Influence scores for any module: how much does a step on each episode help on the examples you trust?

Knows nothing of PPO or Lightning: a module, a loss for each episode and a reference direction go in, scores come out.
"""

from ippo.influence.direction import Direction, Losses, ValidationDirection
from ippo.influence.exact import ExactScorer, Scorer
from ippo.influence.keep import KeepRule, PositiveScore, RandomMatched
from ippo.influence.verdict import Verdict, judge
from ippo.influence.weight import Proportional, Uniform, WeightRule

__all__ = [
    "Direction",
    "ExactScorer",
    "KeepRule",
    "Losses",
    "PositiveScore",
    "Proportional",
    "RandomMatched",
    "Scorer",
    "Uniform",
    "ValidationDirection",
    "Verdict",
    "WeightRule",
    "judge",
]
