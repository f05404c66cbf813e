"""A linear probe: what features of an answer say of the sign of its score.

One score is a noisy sample. Answers that look alike to the policy share what makes them agree with the gold solutions
or oppose them, and a regression over many of them finds it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ippo.functional.layout import check_axes

_NEWTON_STEPS = 50
_CLOSE = 1e-9  # of the gradient, over the number of rows


def standardised(features: Tensor) -> Tensor:
    r"""Columns of mean 0 and variance 1, over the root of their number, so that a row has a length of about 1.

    Args:
        features: [n, d], finite; a column that is the same in all rows becomes 0.

    Returns:
        [n, d] float64, on the CPU.

    Raises:
        ValueError: if a number is not finite.

    Example:
        >>> standardised(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))  # one over the root of 2
        tensor([[-0.7071,  0.0000],
                [ 0.7071,  0.0000]], dtype=torch.float64)
    """
    numbers = features.detach().double().cpu()
    if not bool(numbers.isfinite().all()):
        raise ValueError("features must be finite")
    centred = numbers - numbers.mean(0)
    spread = centred.square().mean(0).sqrt()
    moving = spread > 1e-9 * (1 + numbers.abs().amax(0))
    return torch.where(moving, centred / spread.where(moving, 1.0), 0.0) / max(1, features.shape[1]) ** 0.5


def fit_probe(rows: Tensor, agrees: Tensor, penalty: float) -> Tensor:
    r"""Logistic regression with a ridge penalty on all weights but the constant, by Newton's method.

    .. math:: \min_{w, b} \sum_i \log(1 + e^{z_i}) - y_i z_i + \tfrac{\lambda}{2} \lVert w \rVert^2,
              \quad z_i = w^\top x_i + b

    Args:
        rows: [n, d] float64, x; of :func:`standardised`.
        agrees: [n] bool, y; some of each.
        penalty: lambda, above 0.

    Returns:
        [d + 1] the weights, and b last.

    Raises:
        ValueError: if shapes disagree, or all agree, or none.

    Example:
        >>> rows = torch.tensor([[-1.0], [-1.0], [1.0], [1.0]], dtype=torch.float64)
        >>> agrees = torch.tensor([False, True, True, True])
        >>> fit_probe(rows, agrees, penalty=1e9).round(decimals=3)  # the constant alone: log(3)
        tensor([0.0000, 1.0990], dtype=torch.float64)
    """
    check_axes("nd n", rows=rows, agrees=agrees)
    if bool(agrees.all()) or not bool(agrees.any()):
        raise ValueError("of rows that all agree, or none, there is nothing to tell apart")
    if penalty <= 0:
        raise ValueError(f"penalty must be above 0, but is {penalty}")
    inputs, labels = _with_constant(rows), agrees.to(rows)
    weights = torch.zeros(inputs.shape[1], dtype=rows.dtype)
    weights[-1] = torch.logit(labels.mean())
    ridge = _ridge(weights, penalty)
    for _ in range(_NEWTON_STEPS):
        chance = (inputs @ weights).sigmoid()
        gradient = inputs.T @ (chance - labels) + ridge * weights
        if gradient.abs().max() <= _CLOSE * len(rows):
            break
        step = torch.linalg.solve(_curvature(inputs, chance, ridge), gradient)
        weights = weights - step / max(1.0, float((inputs @ step).abs().max()) / 4)  # far off, no further than it knows
    return weights


def left_out_chances(rows: Tensor, agrees: Tensor, weights: Tensor, penalty: float) -> Tensor:
    r"""How likely each row agrees, by the probe that the others make: a row's own sign has no say in it.

    One Newton step leaves a row out, instead of a fit for each:

    .. math:: z_i^{(-i)} \approx z_i + \frac{h_i}{1 - h_i v_i} (p_i - y_i), \quad v_i = p_i (1 - p_i), \quad
              h_i = x_i^\top H^{-1} x_i

    Args:
        rows, agrees, penalty: as of :func:`fit_probe`.
        weights: [d + 1] that it found for them.

    Returns:
        [n] probabilities.

    Source:
        Rad and Maleki, "A scalable estimate of the out-of-sample prediction error via approximate leave-one-out
        cross-validation", arXiv 1801.10243, for generalised linear models.

    Example:
        >>> rows = torch.zeros(4, 1, dtype=torch.float64)
        >>> agrees = torch.tensor([False, True, True, True])
        >>> weights = fit_probe(rows, agrees, penalty=1.0)  # a constant alone, 3/4
        >>> left_out_chances(rows, agrees, weights, penalty=1.0).round(decimals=2)  # of the others: 1, and 2/3
        tensor([0.9200, 0.6600, 0.6600, 0.6600], dtype=torch.float64)
    """
    inputs, labels = _with_constant(rows), agrees.to(rows)
    logits = inputs @ weights
    chance = logits.sigmoid()
    curvature = _curvature(inputs, chance, _ridge(weights, penalty))
    leverage = (inputs * torch.linalg.solve(curvature, inputs.T).T).sum(1)
    left = (1 - leverage * chance * (1 - chance)).clamp(min=1e-3)
    return (logits + leverage / left * (chance - labels)).sigmoid()


def log_loss(chances: Tensor, agrees: Tensor) -> float:
    r"""The mean surprise, :math:`-\log p_i` of what agrees and :math:`-\log (1 - p_i)` of what does not, in nats.

    Args:
        chances: [n] p.
        agrees: [n] bool.

    Example:
        >>> round(log_loss(torch.tensor([0.5, 0.5]), torch.tensor([True, False])), 4)  # log(2)
        0.6931
    """
    check_axes("n n", chances=chances, agrees=agrees)
    sure = chances.double().clamp(1e-12, 1 - 1e-12)
    return -float(torch.where(agrees, sure, 1 - sure).log().mean())


def narrowed(features: Tensor, width: int) -> Tensor:
    """At most ``width`` columns: more are projected to as many at random, always the same way. Distances between rows
    stay about what they were (Johnson and Lindenstrauss).

    Args:
        features: [n, d].
        width: at least 1.

    Returns:
        [n, min(d, width)]

    Example:
        >>> narrowed(torch.ones(2, 3), width=4).shape, narrowed(torch.ones(2, 300), width=4).shape
        (torch.Size([2, 3]), torch.Size([2, 4]))
    """
    columns = features.shape[1]
    if columns <= width:
        return features
    drawn = torch.randn(columns, width, generator=torch.Generator().manual_seed(0))
    return features @ drawn.to(features) / width**0.5


def keep_where_alike_agree(scores: Tensor, rewarded: Tensor, chances: Tensor, share: float) -> Tensor:
    r"""Keep what scores above 0; of the rewarded, only where answers like it agree, too.

    With :math:`q_i = 2 p_i - 1`, from 0 where a sign is a coin's to 1 where it is sure, a rewarded answer stays if
    :math:`q_i > c \max(\bar q, 0)`, a share c of the mean over the rewarded ones that have a score.

    Args:
        scores: [n].
        rewarded: [n] bool.
        chances: [n] p, of :func:`left_out_chances`; read of the rewarded with a score other than 0.
        share: c.

    Returns:
        [n] bool.

    Source:
        No paper.

    Example:
        >>> scores, rewarded = torch.tensor([0.2, 0.3, -0.1, 0.4]), torch.tensor([True, True, True, False])
        >>> chances = torch.tensor([0.9, 0.55, 0.9, 0.0])  # q is 0.8, 0.1 and 0.8, on the mean 0.57
        >>> keep_where_alike_agree(scores, rewarded, chances, share=0.5)
        tensor([ True, False, False,  True])
    """
    check_axes("n n n", scores=scores, rewarded=rewarded, chances=chances)
    told = rewarded & (scores != 0)
    sure = 2 * chances.to(scores) - 1
    mean = sure[told].mean().clamp(min=0) if bool(told.any()) else sure.new_zeros(())
    return (scores > 0) & (~told | (sure > share * mean))


def _with_constant(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_ones(len(rows), 1)], 1)


def _ridge(weights: Tensor, penalty: float) -> Tensor:
    ridge = torch.full_like(weights, penalty)
    ridge[-1] = 0
    return ridge


def _curvature(inputs: Tensor, chance: Tensor, ridge: Tensor) -> Tensor:
    tiny = 1e-9 * len(inputs)  # where a fit is so sure that nothing bends any more
    return (inputs * (chance * (1 - chance)).unsqueeze(1)).T @ inputs + torch.diag(ridge + tiny)
