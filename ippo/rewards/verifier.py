"""A verifier that errs at a known rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Beta

from ippo.errors import require
from ippo.rewards.functions import RewardFunction, Rewards

ErrsOn = Literal["both", "right", "wrong"]
"""Which answers a verifier errs on: all; only right ones, which it then misses; only wrong ones, which it lets by."""


def beta_of(rate: float, icc: float) -> tuple[float, float]:
    r"""The Beta distribution of error rates, one a prompt, that makes the errors on a prompt's samples correlate.

    Errors of one prompt share its rate :math:`q \sim \mathrm{Beta}(a, b)`. Their mean is then the rate
    :math:`p = a / (a + b)`, and the correlation of any two of them, the intraclass correlation, is
    :math:`\mathrm{Var}(q) / (p (1 - p)) = 1 / (a + b + 1)` (the beta-binomial model).

    Args:
        rate: p, of errors, above 0 and below 1.
        icc: the correlation, above 0 and below 1.

    Returns:
        a and b.

    Example:
        >>> beta_of(0.25, 0.5)  # 1 / (0.25 + 0.75 + 1)
        (0.25, 0.75)
    """
    together = 1.0 / icc - 1.0
    return rate * together, (1.0 - rate) * together


def error_rates(prompts: Sequence[str], rate: float, icc: float) -> Tensor:
    """The chance of an error on each answer, equal for the samples of one prompt (see :func:`beta_of`).

    Args:
        prompts: of ``n`` answers; equal ones are samples of one prompt.
        rate: of errors on the whole.
        icc: correlation of the errors within a prompt, in [0, 1]; at 1 a prompt's samples are all errors, or none is.

    Returns:
        [n], drawn from torch's global generator; nothing is drawn where all are ``rate``.

    Example:
        >>> error_rates(["p", "p"], 0.25, 0.0)
        tensor([0.2500, 0.2500])
        >>> first, second, _ = error_rates(["p", "p", "q"], 0.25, 1.0).tolist()
        >>> first == second and first in (0.0, 1.0)
        True
    """
    groups = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    members = torch.tensor([groups[prompt] for prompt in prompts], dtype=torch.long)
    if icc == 0.0 or rate in (0.0, 1.0):
        each = torch.full((len(groups),), rate)
    elif icc == 1.0:
        each = (torch.rand(len(groups)) < rate).float()
    else:
        first, second = beta_of(rate, icc)
        each = Beta(torch.tensor(first), torch.tensor(second)).sample((len(groups),))
    return each[members]


class NoisyVerifier:
    """Flips a known share of 0/1 rewards: verifiers and reward models err, and here the rate is exact.

    The flips come from torch's global generator, so a seeded run repeats and a resumed run goes on with the same ones.

    Args:
        reward: the exact reward; must return 0 or 1, or None where it does not apply.
        error_rate: probability, in [0, 1], that the reward of an answer it errs on is flipped.
        errs_on: ``"both"`` right and wrong answers, or one of them alone.
        icc: correlation of the errors on the samples of one prompt (see :func:`error_rates`). A prompt whose gold
            answer is wrong, say, misleads the verifier on all of its samples; a study of real verifiers found 0.53
            (arXiv 2609.06386).

    Raises:
        UsageError: if ``error_rate`` or ``icc`` lies outside [0, 1], or ``errs_on`` is none of the three.

    Example:
        >>> exact = lambda prompts, completions, **columns: [1.0, 0.0]
        >>> NoisyVerifier(exact, 1.0)(["p", "p"], ["a", "b"])
        [0.0, 1.0]
        >>> NoisyVerifier(exact, 1.0, errs_on="wrong")(["p", "p"], ["a", "b"])
        [1.0, 1.0]
    """

    def __init__(self, reward: RewardFunction, error_rate: float, errs_on: ErrsOn = "both", icc: float = 0.0) -> None:
        require(0.0 <= error_rate <= 1.0, "verifier_error", error_rate, "use a share between 0 and 1")
        require(errs_on in ("both", "right", "wrong"), "verifier_errs_on", errs_on, "use both, right or wrong")
        require(0.0 <= icc <= 1.0, "verifier_error_icc", icc, "use a correlation between 0 and 1")
        self.rewards, self.error_rate, self.icc = Rewards(reward), error_rate, icc
        self._spared = {"both": None, "right": 0.0, "wrong": 1.0}[errs_on]

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[object]
    ) -> list[float | None]:
        exact = self.rewards(prompts, completions, **columns).total
        others = [value for value in exact if value not in (0.0, 1.0, None)]
        require(not others, f"reward {self.rewards.names[0]}", others[:1], "a verifier that errs flips 0 and 1 alone")
        rates = error_rates(prompts, self.error_rate, self.icc)
        flips = (torch.rand(len(exact)) < rates).tolist()
        return [
            1.0 - value if flip and value not in (self._spared, None) else value
            for value, flip in zip(exact, flips, strict=True)
        ]
