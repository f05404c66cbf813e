"""The loss of a pair of answers, of which one is to be preferred."""

from __future__ import annotations

from torch import Tensor

from ippo.functional.layout import check_axes


def preference_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    r"""By how much the rejected answer is likelier than the chosen one: DPO's loss for a policy that is its own
    reference, but for a factor.

    .. math:: \ell_i = \log \pi(y_r \mid x) - \log \pi(y_c \mid x)

    DPO's loss is :math:`-\log \sigma(\beta (h_c - h_r))` with log-ratios h to a reference. Where the policy is the
    reference these are 0, and the gradient is :math:`\tfrac{\beta}{2} \nabla \ell_i`: every pair weighs the same, and
    tokens with which both answers begin cancel. By means over tokens instead they would not: a first step that both
    have right would be unlearned where the rejected answer is the shorter one.

    Args:
        chosen: [n] log-probability of a whole chosen answer, in nats.
        rejected: [n] that of the answer it is preferred to.

    Returns:
        [n], in nats; negative where the chosen answer is the likelier.

    Raises:
        ValueError: if shapes disagree.

    Source:
        DPO (arXiv 2305.18290), the gradient after equation 7.

    Example:
        >>> preference_loss(chosen=Tensor([-3.0]), rejected=Tensor([-5.0]))
        tensor([-2.])
    """
    check_axes("n n", chosen=chosen, rejected=rejected)
    return rejected - chosen
