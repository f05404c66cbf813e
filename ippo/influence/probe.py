"""A keep rule that asks answers that look alike: one score is noisy, what many have in common is not."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from ippo.errors import UsageError, require
from ippo.functional import (
    fit_probe,
    keep_positive,
    keep_where_alike_agree,
    left_out_chances,
    log_loss,
    narrowed,
    standardised,
)
from ippo.influence.keep import KeepRule


class PositiveProbe(KeepRule):
    """Keep what scores above 0; of the rewarded, only where answers like it do, too.

    A verifier that can be gamed pays for a *kind* of answer. Single scores of that kind lie on both sides of zero, so
    that the sign alone lets a third to a half of them by. A linear probe of the policy's own hidden states, fitted to
    the signs of all rewarded answers so far, says how often answers like one score above 0, without its own sign. Where
    nothing that the probe sees tells signs apart, it does as :class:`~ippo.influence.PositiveScore`.

    Rows need ``features``: the module's own episodes get the policy's hidden states
    (:func:`ippo.models.hidden.answer_states`); a buffer or a batch of another type brings an entry of that name.

    Args:
        share: a rewarded answer stays if its expected sign, 2 P(score > 0) - 1, is above this share of the mean of all
            rewarded ones. At 0 what is more likely above zero than below stays.
        penalty: of the probe's weights, where features have variance 1 over their number.
        threshold: an answer is rewarded if its reward is above this.
        least: rewarded answers with a score that the probe takes before it has a say, and signs of each kind.
        memory: rewarded answers that are remembered, the latest.
        width: features beyond this number are projected to it at random, with a fixed seed.

    Example:
        >>> scores = torch.tensor([1.0, -1.0, 1.0, -1.0] * 8 + [1.0, 1.0, 1.0, 1.0] * 8)
        >>> kind = torch.tensor([[1.0]] * 32 + [[0.0]] * 32)  # signs of the first kind are a coin's
        >>> rule = PositiveProbe().with_features(kind)
        >>> rule(scores, torch.ones(64), torch.arange(64))[[0, 1, 32, 33]]
        tensor([False, False,  True,  True])
    """

    reason = "it, or what answers like it, score <= 0"
    reads = ("rewards", "features")

    def __init__(
        self,
        share: float = 0.5,
        penalty: float = 0.5,
        threshold: float = 0.5,
        least: int = 32,
        memory: int = 4096,
        width: int = 512,
    ) -> None:
        require(0 <= share < 1, "share", share, "use a number from 0 to below 1")
        require(0 < penalty < math.inf, "penalty", penalty, "use a number above 0")
        require(abs(threshold) < math.inf, "threshold", threshold, "use a reward between those of wrong and right")
        require(least >= 4, "least", least, "use a whole number of at least 4")
        require(memory >= least, "memory", memory, f"use at least {least}, what least asks for")
        require(width >= 1, "width", width, "use a whole number of at least 1")
        self.share, self.penalty, self.threshold = share, penalty, threshold
        self.least, self.memory, self.width = least, memory, width
        self._past: dict[str, Tensor] = {}
        self._features: Tensor | None = None

    def with_features(self, features: Tensor) -> PositiveProbe:
        """See :meth:`KeepRule.with_features`; what is learned goes on in this rule.

        Raises:
            UsageError: if they are not [n, d] finite numbers, or of another width than before.
        """
        remedy = "give [n, d] finite numbers, the same d for every buffer"
        fits = features.ndim == 2 and features.shape[1] > 0 and bool(features.isfinite().all())
        require(fits, "features", f"{list(features.shape)} numbers", remedy)
        narrow = narrowed(features.detach().float().cpu(), self.width)
        known = self._past["features"].shape[1] if self._past else narrow.shape[1]
        require(known == narrow.shape[1], "features", f"{list(features.shape)} numbers", remedy)
        bound = copy.copy(self)  # with the same memory
        bound._features = narrow
        return bound

    def __call__(self, scores: Tensor, rewards: Tensor, groups: Tensor) -> Tensor:
        """See :meth:`KeepRule.__call__`.

        Raises:
            UsageError: without features.
        """
        if self._features is None:
            remedy = "it reads features: use it in a filter of rollouts, or give with_features() some"
            raise UsageError("keep", "PositiveProbe()", remedy)
        rewarded = rewards > self.threshold
        told = rewarded & (scores != 0)
        self._remember(self._features[told.cpu()], (scores[told] > 0).cpu())
        chances = self._chances(int(told.sum()))
        if chances is None:
            return keep_positive(scores)
        everywhere = torch.full_like(scores, 0.5)
        everywhere[told] = chances.to(scores)
        return keep_where_alike_agree(scores, rewarded, everywhere, self.share)

    def state_dict(self) -> dict[str, Any]:
        """The answers that are remembered: their features and signs."""
        return dict(self._past)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._past.update(state_dict)

    def _remember(self, features: Tensor, agrees: Tensor) -> None:
        for name, new in (("features", features), ("agrees", agrees)):
            kept = torch.cat([self._past[name], new]) if name in self._past else new
            self._past[name] = kept[-max(self.memory, len(new)) :]

    def _chances(self, latest: int) -> Tensor | None:
        """[latest] of the last ones remembered; None where the probe has no say: of too few, or of signs that it does
        not foresee better than their share does."""
        agrees = self._past["agrees"]
        each = int(agrees.sum()), int((~agrees).sum())
        if latest == 0 or len(agrees) < self.least or min(each) < 2:
            return None
        rows = standardised(self._past["features"])
        weights = fit_probe(rows, agrees, self.penalty)
        chances = left_out_chances(rows, agrees, weights, self.penalty)
        base = torch.where(agrees, each[0] - 1, each[0]).double() / (len(agrees) - 1)
        if log_loss(chances, agrees) >= log_loss(base, agrees):
            return None
        return chances[-latest:]
