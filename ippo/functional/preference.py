"""The loss of a pair of answers, of which one is to be preferred."""

from __future__ import annotations

import torch
from torch import Tensor

from ippo.functional.layout import check_axes


def preference_loss(chosen: Tensor, rejected: Tensor, beta: float = 2.0, margin: float = 0.5) -> Tensor:
    r"""How far the policy is from preferring the chosen answer by a margin, without a reference policy (SimPO).

    .. math:: \ell_i = -\log \sigma(\beta (c_i - r_i) - \gamma)

    Args:
        chosen: [n] mean log-probability of a chosen answer's tokens, c, in nats a token.
        rejected: [n] that of the answer it is preferred to, r.
        beta: of the difference, above 0.
        margin: gamma, at least 0.

    Returns:
        [n], in nats; its gradient is beta (1 - sigma) times that of r - c, so that pairs that are told apart well
        weigh little.

    Raises:
        ValueError: if shapes disagree, or an option is out of range.

    Source:
        SimPO (arXiv 2405.14734), equation 6.

    Example:
        >>> preference_loss(torch.tensor([-1.0]), torch.tensor([-1.0]), margin=0.0)  # a coin's: log 2
        tensor([0.6931])
    """
    check_axes("n n", chosen=chosen, rejected=rejected)
    if beta <= 0 or margin < 0:
        raise ValueError(f"beta must be above 0 and the margin at least 0, got beta={beta}, margin={margin}")
    return torch.nn.functional.softplus(margin - beta * (chosen - rejected))
