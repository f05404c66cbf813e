"""Do the gold solutions look like anything that the policy would write?

Where they do not, the gradient of their loss is of their style above all. A right answer in the policy's own style then
scores like a wrong one, or lower, and a filter drops it.
"""

from __future__ import annotations

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from ippo.distributed import total_of
from ippo.functional import sft_loss
from ippo.influence.direction import mean_over_ranks
from ippo.rollout.episodes import Episodes

FOREIGN = 2.0
"""Nats a token: a gold token surprises the policy by so much more than its own do, that is by a factor of seven."""

REMEDY = (
    "warm-start on such solutions, write them as the policy writes, or let the policy answer the gold problems itself: "
    "filter.direction=ReturnDirection(on='validation', judged_by='check')"
)


def own_surprise(logprobs: Tensor, mask: Tensor) -> float:
    """What the policy's own answers surprise it by, in nats a token: the mean over the answers of all ranks.

    Args:
        logprobs: [n, t] of their tokens.
        mask: [n, t] True on response tokens.
    """
    return mean_over_ranks(sft_loss(logprobs, mask))


class StyleWarning:
    """Says once if the gold solutions of a filter's direction are foreign to the policy, at its first rollout."""

    def __init__(self, name: str) -> None:
        self.name, self._looked = name, False

    def look_at(self, gold_loss: float, episodes: Episodes) -> None:
        """Take in the loss of the gold solutions, in nats a token, and the buffer that is scored along its gradient."""
        if self._looked or not total_of(len(episodes), episodes.old_logprobs.device):  # an earlier filter left nothing
            return
        self._looked, own = True, own_surprise(episodes.old_logprobs, episodes.response_mask)
        if gold_loss - own > FOREIGN:
            rank_zero_warn(
                f"{self.name}: the gold solutions are foreign to the policy: {gold_loss:.2g} nats a token, where its "
                f"own answers take {own:.2g}. Scores then tell their style, not what is right, and right answers may "
                f"be dropped: {REMEDY}"
            )
