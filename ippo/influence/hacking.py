"""An alarm for rewards that are being gamed, from rewards and scores alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ippo.errors import require
from ippo.functional import (
    binomial_evidence,
    cusum,
    opposing_share,
    rank_correlation,
    survival_by_reward,
    with_odds,
)


@dataclass(frozen=True)
class Alarm:
    """What gave an alarm.

    Args:
        iteration: in which it was given, counted from 0 over the calls of :meth:`RewardHackingDetector.update`.
        since: the iteration from which it went wrong, at most ``iteration``.
        opposing: share of the rewarded episodes that opposed the gold set from then on.
        usual: the share before.
        cusum: the evidence, in nats.
    """

    iteration: int
    since: int
    opposing: float
    usual: float
    cusum: float

    def __str__(self) -> str:
        return (
            f"from iteration {self.since} on, {self.opposing:.0%} of the rewarded episodes oppose the gold set, where "
            f"{self.usual:.0%} are usual: the reward pays for something else than the gold solutions teach"
        )


class RewardHackingDetector:
    r"""Tells when a policy begins to game its reward.

    A policy that has found a hole in its reward is paid for steps away from the gold solutions: more and more of the
    *rewarded* episodes have a negative score. Their number in each iteration is a step of a one-sided CUSUM for a
    proportion (Page 1954; Reynolds and Stoumbos 1999): it weighs the odds being ``odds_ratio`` times the usual ones
    against their being as usual, and gives an alarm at ``decision_interval``. What is usual is the share in all
    iterations of the run before the present rise, as in a self-starting CUSUM (Hawkins 1987), or ``baseline`` where
    that is more. Rewards that err at random have such episodes, too, but not more and more of them.

    Args:
        baseline: the share of rewarded episodes that opposes the gold set in a run that goes well, at most; in (0, 1).
        odds_ratio: the change to look for, above 1.
        decision_interval: evidence for an alarm, in nats.
        warmup: iterations before the first that may count as a rise: what is usual has to be learned.
        patience: an alarm takes so many iterations, at least: none brings more than its part of the decision interval
            (a winsorized CUSUM), so that a single strange one is no alarm.
        threshold: an episode is rewarded if its reward is above this; None takes the mean of the iteration's rewards,
            for rewards that are not 0 or 1.

    Raises:
        UsageError: if an option is out of range.

    Example: more oppose the gold set from iteration 3 on:

        >>> import torch
        >>> detector = RewardHackingDetector()
        >>> rewards = torch.ones(100)
        >>> for opposing in (33, 28, 29, 50, 62):
        ...     scores = torch.where(torch.arange(100) < opposing, -1.0, 1.0)
        ...     alarm = detector.update(rewards, scores)
        >>> alarm.since, alarm.iteration
        (3, 4)
        >>> round(alarm.opposing, 2), alarm.usual
        (0.56, 0.3)
    """

    def __init__(
        self,
        baseline: float = 0.2,
        odds_ratio: float = 1.4,
        decision_interval: float = 8.0,
        warmup: int = 3,
        patience: int = 2,
        threshold: float | None = 0.5,
    ) -> None:
        require(0.0 < baseline < 1.0, "baseline", baseline, "use a share between 0 and 1")
        require(odds_ratio > 1.0, "odds_ratio", odds_ratio, "use a factor above 1, as 1.5")
        require(decision_interval > 0.0, "decision_interval", decision_interval, "use a number above 0, in nats")
        require(warmup >= 0, "warmup", warmup, "use 0 or more")
        require(patience >= 1, "patience", patience, "use at least 1")
        finite = threshold is None or math.isfinite(threshold)
        require(finite, "threshold", threshold, "use a reward, or None for the mean of each iteration")
        self.baseline, self.odds_ratio, self.decision_interval = baseline, odds_ratio, decision_interval
        self.warmup, self.patience, self.threshold = warmup, patience, threshold
        self.iterations = 0
        self.cusum = 0.0
        self.alarm: Alarm | None = None
        self.figures: dict[str, float] = {}  # of the last iteration
        self._all, self._rise = [0, 0], [0, 0]  # episodes that oppose, and that count: of the run, and of the rise
        self._rise_began = 0

    def update(self, rewards: Tensor, scores: Tensor, groups: Tensor | None = None) -> Alarm | None:
        """Take in an iteration.

        Args:
            rewards: [n], in the unit of ``threshold``.
            scores: [n], one influence score an episode, of all episodes that were sampled and not of those alone that a
                filter has kept. One that is not finite does not count.
            groups: [n] integers, equal for the samples of one prompt; for the correlation within prompts.

        Returns:
            An alarm, once; None before and after. :attr:`alarm` keeps it.

        Raises:
            UsageError: if rewards and scores are not one each an episode.
        """
        fits = rewards.shape == scores.shape == (len(scores),)
        remedy = f"give one reward and one score an episode; there are {list(rewards.shape)} rewards"
        require(fits, "scores", list(scores.shape), remedy)
        known = scores.isfinite() & rewards.isfinite()
        groups = None if groups is None else groups[known]
        rewards, scores = rewards[known].detach(), scores[known].detach()
        rewarded = rewards > (self.threshold if self.threshold is not None else rewards.mean())
        counted = int((rewarded & (scores != 0)).sum())
        opposing = int((rewarded & (scores < 0)).sum())
        self._weigh(opposing, counted)
        self.figures = self._describe(rewards, scores, rewarded, groups)
        self.iterations += 1
        if self.alarm is not None or self.cusum < self.decision_interval * (1 - 1e-9):  # parts of it add up to rounding
            return None
        opposing, counted = self._rise
        self.alarm = Alarm(self.iterations - 1, self._rise_began, opposing / counted, self.usual, self.cusum)
        return self.alarm

    @property
    def usual(self) -> float:
        """The share that a rise is held against."""
        opposing, counted = (every - risen for every, risen in zip(self._all, self._rise, strict=True))
        return max(self.baseline, opposing / counted) if counted else self.baseline

    @property
    def since(self) -> int | None:
        """The iteration from which it may be going wrong; None where nothing speaks for it."""
        return self._rise_began if self.cusum > 0 else None

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart: plain numbers."""
        return {
            "iterations": self.iterations,
            "cusum": self.cusum,
            "all": list(self._all),
            "rise": list(self._rise),
            "rise_began": self._rise_began,
            "alarm": None if self.alarm is None else asdict(self.alarm),
            "figures": dict(self.figures),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self.iterations, self.cusum = state["iterations"], state["cusum"]
        self._all, self._rise = list(state["all"]), list(state["rise"])
        self._rise_began = state["rise_began"]
        self.alarm = None if state["alarm"] is None else Alarm(**state["alarm"])
        self.figures = dict(state["figures"])

    def _weigh(self, opposing: int, counted: int) -> None:
        """One step of the CUSUM, against what was usual before."""
        if self.iterations >= self.warmup and self.usual < 1.0:  # above 1 there is nothing to rise to
            changed = with_odds(self.usual, self.odds_ratio)
            evidence = binomial_evidence(opposing, counted, self.usual, changed)
            self.cusum = cusum(self.cusum, min(evidence, self.decision_interval / self.patience))
        self._all = [self._all[0] + opposing, self._all[1] + counted]
        if self.cusum > 0:
            self._rise = [self._rise[0] + opposing, self._rise[1] + counted]
        else:
            self._rise, self._rise_began = [0, 0], self.iterations + 1

    def _describe(self, rewards: Tensor, scores: Tensor, rewarded: Tensor, groups: Tensor | None) -> dict[str, float]:
        """The iteration's figures, without those that it has nothing for."""
        among_rewarded, among_others = survival_by_reward(scores > 0, rewarded)
        found: dict[str, Tensor | float] = {
            "opposing": opposing_share(scores, rewarded),
            "usual": self.usual,
            "cusum": self.cusum,
            "rank_correlation": rank_correlation(rewards, scores),
            "survival_rewarded": among_rewarded,
            "survival_unrewarded": among_others,
        }
        if groups is not None:
            found["rank_correlation_within"] = rank_correlation(rewards, scores, groups)
        numbers = {name: float(value) for name, value in found.items()}
        return {name: number for name, number in numbers.items() if not math.isnan(number)}
