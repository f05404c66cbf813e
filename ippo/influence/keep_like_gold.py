"""The keep rule that does no harm where nothing is wrong: the gold rows say what right rows score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ippo.distributed import gather, rank
from ippo.errors import UsageError, require
from ippo.functional import keep_like_gold
from ippo.influence.direction import Buffer, Losses
from ippo.influence.directions import BufferDirection
from ippo.influence.keep import KeepRule
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


def gold_scores(
    module: nn.Module, scorer: Scorer, losses: Losses, batches: Iterable[Any], direction: Mapping[str, Tensor]
) -> Tensor:
    """Scores of gold rows, each along the mean gradient of the others, so that none votes for itself.

    Args:
        module, scorer, losses: as rows to be judged are scored.
        batches: of gold rows. Ranks read the same ones, as a rule, so the first rank's count for all.
        direction: the mean gradient of these rows.

    Returns:
        [m] float32, the same on all ranks.
    """
    own = list(batches) if rank() == 0 else []
    found = scorer.score(module, losses, own, _Others(direction))
    return gather(found.to(next(module.parameters()).device))[0]


class _Others(BufferDirection):
    """Of each row the others' mean gradient, where the mean of all is known."""

    def __init__(self, mean: Mapping[str, Tensor]) -> None:
        super().__init__(leave_one_out=True)
        self.mean = mean

    def compute(self, module: nn.Module, buffer: Buffer | None = None) -> dict[str, Tensor]:
        return dict(self.mean)
