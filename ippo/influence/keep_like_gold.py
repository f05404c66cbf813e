"""The keep rule that does no harm where nothing is wrong: the gold rows say what right rows score."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from ippo.distributed import alike_on_all_ranks, gather, rank, world_size
from ippo.errors import UsageError, require
from ippo.functional import keep_like_gold
from ippo.influence.backends import ghost_mean_gradient
from ippo.influence.direction import Buffer, Losses, losses_and_mean_gradient, resolve
from ippo.influence.directions import BufferDirection, leave_one_out
from ippo.influence.exact import ExactScorer
from ippo.influence.hooks import UncoveredLayerError
from ippo.influence.in_step import Filling
from ippo.influence.keep import KeepRule
from ippo.influence.parameters import scored, spread
from ippo.influence.scorer import Scorer


class LikeGold(KeepRule):
    """Drop what scores lower than gold rows do, where more rows are so low than chance explains.

    A sign says little about one row: along the gradient of a few trusted rows, about half of the *right* rows of a
    classifier score below zero, and where all rows share a direction none does, right or wrong. So gold rows are
    scored too, each along the direction that the others make. Of any data some right rows score as low as the lowest of
    them; a batch in which no more do stays whole, and of the rows that go at most ``fdr`` are right ones, on average.

    Args:
        fdr: the false discovery rate: the share of right rows among those that go. The more gold rows, the fewer wrong
            ones it takes in a batch to be told: a share of 1 / (fdr (m + 1)) at least, with m gold rows.

    Example:
        >>> import torch
        >>> rule = LikeGold(fdr=0.5).bind(torch.arange(1.0, 8.0))  # below the lowest of seven gold rows: 1/8
        >>> rule(torch.tensor([0.1, 3.0, 5.0, 6.0]), torch.ones(4), torch.arange(4))  # 1/8 <= 0.5 * 1/4
        tensor([False,  True,  True,  True])
    """

    reason = "score below those of gold rows"
    reads = ("gold_scores",)

    def __init__(self, fdr: float = 0.2) -> None:
        require(0.0 < fdr < 1.0, "fdr", fdr, "use a share between 0 and 1 of right rows among those that go")
        self.fdr = fdr
        self._gold_scores: Tensor | None = None

    def bind(self, gold_scores: Tensor) -> LikeGold:
        """See :meth:`KeepRule.bind`.

        Raises:
            UsageError: if there are so few gold rows that not even a batch of which a quarter is wrong would lose any.
        """
        fewest = math.ceil(4 / self.fdr - 1 - 1e-9)
        remedy = f"fdr={self.fdr} takes at least {fewest}: give more of them, or another rule, keep=PositiveScore()"
        require(len(gold_scores) >= fewest, "keep", f"LikeGold with {len(gold_scores)} gold rows", remedy)
        bound = LikeGold(self.fdr)
        bound._gold_scores = gold_scores
        return bound

    def __call__(self, scores: Tensor, rewards: Tensor, groups: Tensor) -> Tensor:
        if self._gold_scores is None:
            remedy = (
                "it reads the scores of gold rows: give bind() them, or use it in a filter with ValidationDirection"
            )
            raise UsageError("keep", "LikeGold()", remedy)
        return keep_like_gold(scores, self._gold_scores, self.fdr)


class Gold(NamedTuple):
    """Gold rows, looked at once.

    Args:
        direction: the mean gradient over all ranks.
        losses: [n] of this rank's rows.
        scores: [m] each along the mean gradient of the others, so that none votes for itself; the same on all ranks.
    """

    direction: Mapping[str, Tensor]
    losses: Tensor
    scores: Tensor


def look_at_gold(module: nn.Module, scorer: Scorer, losses: Losses, batches: list[Any]) -> Gold:
    """The direction of gold rows, and what they score along it: in one pass where there is one batch of them, and hooks
    are how ``scorer`` has scored last; else in two.

    Ranks read the same rows, as a rule, and then the first one's count for all. Where their losses say that they read
    others, as of a loader with a ``DistributedSampler``, all count.

    Args:
        module, scorer, losses: as rows to be judged are scored.
        batches: of gold rows.

    Raises:
        UsageError: if there is no row, or the gradient is not finite.
    """
    by_hooks = isinstance(scorer, ExactScorer) and scorer.choice.startswith("ghost:")
    with scored(module, scorer.parameters):
        if by_hooks and len(batches) == 1 and world_size() == 1 and not spread(module):
            try:
                found = ghost_mean_gradient(module, losses, batches[0])
            except UncoveredLayerError:
                pass
            else:
                scores = leave_one_out(found.scores, found.squares).float()
                return Gold(resolve(found.gradient, module), found.losses.float(), scores)
        rows, gradient = losses_and_mean_gradient(module, losses, batches)
        direction = resolve(gradient, module)
        alike = alike_on_all_ranks(rows.sort().values)  # every rank asks
        others = list(map(Filling, batches)) if spread(module) else []
        own = batches if rank() == 0 or not alike else others
        scores = scorer.score(module, losses, own, _Others(direction))
        return Gold(direction, rows, gather(scores.to(rows.device))[0])


class _Others(BufferDirection):
    """Of each row the others' mean gradient, where the mean of all is known."""

    def __init__(self, mean: Mapping[str, Tensor]) -> None:
        super().__init__(leave_one_out=True)
        self.mean = mean

    def compute(self, module: nn.Module, buffer: Buffer | None = None) -> dict[str, Tensor]:
        return dict(self.mean)
