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
    proportion (Page 1954; Reynolds and Stoumbos 1999): it weighs the odds being ``odds_ratio`` times what they were
    against their being as before, and gives an alarm above ``decision_interval``. What is usual is the run's own lowest
    share of ``window`` iterations in a row, at least ``baseline``: rewards that err at random have such episodes, too,
    but not more and more of them.

    Args:
        baseline: the share of rewarded episodes that opposes the gold set in a run that goes well, at most; in (0, 1).
        odds_ratio: the change to look for, above 1.
        decision_interval: evidence for an alarm, in nats.
        window: iterations in a row whose share may become what is usual.
        patience: an alarm is given after so many iterations in a row above the decision interval.
        threshold: an episode is rewarded if its reward is above this; None takes the mean of the iteration's rewards,
            for rewards that are not 0 or 1.

    Raises:
        UsageError: if an option is out of range.

    Example: twice as many oppose the gold set from iteration 3 on:

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
        baseline: float = 0.3,
        odds_ratio: float = 2.0,
        decision_interval: float = 10.0,
        window: int = 3,
        patience: int = 1,
        threshold: float | None = 0.5,
    ) -> None:
        require(0.0 < baseline < 1.0, "baseline", baseline, "use a share between 0 and 1")
        require(odds_ratio > 1.0, "odds_ratio", odds_ratio, "use a factor above 1, as 2")
        require(decision_interval > 0.0, "decision_interval", decision_interval, "use a number above 0, in nats")
        require(window >= 1, "window", window, "use at least 1")
        require(patience >= 1, "patience", patience, "use at least 1")
        finite = threshold is None or math.isfinite(threshold)
        require(finite, "threshold", threshold, "use a reward, or None for the mean of each iteration")
        self.baseline, self.odds_ratio, self.decision_interval = baseline, odds_ratio, decision_interval
        self.window, self.patience, self.threshold = window, patience, threshold
        self.iterations = 0
        self.cusum = 0.0
        self.alarm: Alarm | None = None
        self.figures: dict[str, float] = {}  # of the last iteration
        self._recent: list[list[int]] = []  # of up to `window` iterations: episodes that oppose, and that count
        self._lowest = 1.0  # above which nothing can rise: no alarm before the window is full
        self._since = [0, 0, 0]  # the iteration of the rise; the episodes since then that oppose, and that count
        self._above = 0

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
        if self.alarm is not None or self._above < self.patience:
            return None
        since, among, of = self._since
        self.alarm = Alarm(self.iterations - 1, since, among / of, self.usual, self.cusum)
        return self.alarm

    @property
    def usual(self) -> float:
        """The share that a rise is held against."""
        return max(self.baseline, self._lowest)

    @property
    def since(self) -> int | None:
        """The iteration from which it may be going wrong; None where nothing speaks for it."""
        return self._since[0] if self.cusum > 0 else None

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart: plain numbers."""
        return {
            "iterations": self.iterations,
            "cusum": self.cusum,
            "recent": [list(counts) for counts in self._recent],
            "lowest": self._lowest,
            "since": list(self._since),
            "above": self._above,
            "alarm": None if self.alarm is None else asdict(self.alarm),
            "figures": dict(self.figures),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self.iterations, self.cusum = state["iterations"], state["cusum"]
        self._recent, self._lowest = [list(counts) for counts in state["recent"]], state["lowest"]
        self._since, self._above = list(state["since"]), state["above"]
        self.alarm = None if state["alarm"] is None else Alarm(**state["alarm"])
        self.figures = dict(state["figures"])

    def _weigh(self, opposing: int, counted: int) -> None:
        """One step of the CUSUM, against what was usual before."""
        if self.usual < 1.0:
            changed = with_odds(self.usual, self.odds_ratio)
            self.cusum = cusum(self.cusum, binomial_evidence(opposing, counted, self.usual, changed))
        first, among, of = self._since
        self._since = [first, among + opposing, of + counted] if self.cusum else [self.iterations + 1, 0, 0]
        self._above = self._above + 1 if self.cusum > self.decision_interval else 0
        self._recent = [*self._recent, [opposing, counted]][-self.window :]
        among, of = map(sum, zip(*self._recent, strict=True))
        if len(self._recent) == self.window and of:
            self._lowest = min(self._lowest, among / of)

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
