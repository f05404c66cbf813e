"""Influence scores for any module: how much does a step on each episode help on the examples you trust?

Knows nothing of PPO or Lightning: a module, a loss for each episode and a reference direction go in, scores come out.
"""

from ippo.influence.direction import Buffer, Direction, Losses, ValidationDirection
from ippo.influence.directions import AdamPreconditioned, BufferDirection, ReturnDirection
from ippo.influence.exact import ExactScorer
from ippo.influence.fused import score_and_backward
from ippo.influence.hacking import Alarm, RewardHackingDetector
from ippo.influence.keep import (
    AboveGap,
    KeepRule,
    MaxVariance,
    PositiveScore,
    RandomMatched,
    RightAndRandom,
    RightOrPositive,
    TopFraction,
    WorstNegatives,
)
from ippo.influence.keep_like_gold import LikeGold
from ippo.influence.language import causal_lm_losses
from ippo.influence.lookahead import LookaheadScorer
from ippo.influence.posterior import LikelyRight, Posterior
from ippo.influence.probe import PositiveProbe
from ippo.influence.projection import RandomProjectionScorer, Sketches
from ippo.influence.scorer import Scorer
from ippo.influence.selection import Selection, select_episodes
from ippo.influence.tracin import TracInScorer
from ippo.influence.weight import Proportional, Uniform, WeightRule

__all__ = [
    "AboveGap",
    "AdamPreconditioned",
    "Alarm",
    "Buffer",
    "BufferDirection",
    "Direction",
    "ExactScorer",
    "KeepRule",
    "LikeGold",
    "LikelyRight",
    "LookaheadScorer",
    "Losses",
    "MaxVariance",
    "PositiveProbe",
    "PositiveScore",
    "Posterior",
    "Proportional",
    "RandomMatched",
    "RightAndRandom",
    "RandomProjectionScorer",
    "ReturnDirection",
    "RewardHackingDetector",
    "RightOrPositive",
    "Scorer",
    "Sketches",
    "TopFraction",
    "TracInScorer",
    "Uniform",
    "ValidationDirection",
    "Selection",
    "WeightRule",
    "WorstNegatives",
    "causal_lm_losses",
    "select_episodes",
    "score_and_backward",
]
