"""Signs that a run is going wrong, from its curves and its gradients: pure checks, each with the likely cause."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ippo.errors import require
from ippo.rollout.episodes import Episodes


class NumericWarning(UserWarning):
    """A number of the training that is not finite, or that a healthy run would not show."""


@dataclass(frozen=True)
class Limits:
    """Beyond these a curve is told.

    Args:
        kl: mean k1 estimate in nats a token; a divergence is never negative, its estimate only by noise.
        mismatch: k3 divergence a token before the first step; 1e-3 are ratios that are 4 % off.
        explained_variance: -1 is a critic whose error varies twice as much as what it predicts.
        entropy: share of the entropy of the first iteration.
        zero_variance: share of the prompts whose answers all earned the same.
    """

    kl: float = -0.05
    mismatch: float = 1e-3
    explained_variance: float = -1.0
    entropy: float = 0.05
    zero_variance: float = 0.9

    def __post_init__(self) -> None:
        require(self.kl < 0, "limits.kl", self.kl, "use a number below 0: 0 itself is where a run starts")
        require(self.mismatch > 0, "limits.mismatch", self.mismatch, "use a number above 0: rounding is no mistake")


def complaints(
    curves: Mapping[str, float], first_entropy: float, grouped: bool, limits: Limits = Limits()
) -> dict[str, str]:
    """What is wrong with an iteration's curves, by the curve's name: the figure, the likely cause and the setting.

    Args:
        curves: as :class:`ippo.PPOModule` logs them; one that is missing is not judged.
        first_entropy: ``ppo/entropy`` of the first iteration, in nats a token.
        grouped: whether advantages compare the samples of one prompt.
        limits: see :class:`Limits`.

    Example:
        >>> complaints({"ppo/explained_variance": 0.2, "ppo/entropy": 0.5}, first_entropy=1.0, grouped=False)
        {}
        >>> list(complaints({"ppo/explained_variance": -3.0, "ppo/entropy": 0.01}, first_entropy=1.0, grouped=False))
        ['ppo/explained_variance', 'ppo/entropy']
    """
    found: dict[str, str] = {}

    def check(name: str, wrong: Callable[[float], bool], cause: str) -> None:
        if name in curves and wrong(curves[name]):
            found[name] = f"{name} = {curves[name]:.4g}: {cause}"

    check(
        "ppo/kl",
        lambda kl: kl < limits.kl,
        "a divergence cannot be negative. Likely the responses were not sampled from the policy whose "
        "log-probabilities are taken: check sampling.temperature, sampling.top_p and the weights of the rollout engine",
    )
    check(
        "ppo/mismatch",
        lambda gap: gap > limits.mismatch,
        "before the first step the ratios should be 1. Likely the two passes differ, by dropout, kernels or half "
        "precision: try the filter's one_pass=False, or trainer.precision=32-true",
    )
    check(
        "ppo/explained_variance",
        lambda share: share < limits.explained_variance,
        "the critic is worse than no critic. Likely it learns too fast, or rewards are large: lower "
        "ppo.value_learning_rate, or scale the reward to about 1",
    )
    check(
        "ppo/entropy",
        lambda entropy: entropy < limits.entropy * first_entropy,
        f"the policy has almost stopped to explore; it began at {first_entropy:.4g}. Likely it learns too fast: lower "
        "ppo.learning_rate, or raise ppo.kl_coef or ppo.entropy_coef",
    )
    check(
        "reward/zero_variance",
        lambda share: grouped and share > limits.zero_variance,
        "so many prompts earn the same with every answer, and teach nothing when answers of one prompt are compared. "
        "Likely they are too easy or too hard: take other prompts, or raise ppo.samples_per_prompt",
    )
    return found


def culprits(loss: Callable[[Episodes], Tensor], parameters: Iterable[nn.Parameter], episodes: Episodes) -> list[str]:
    """The texts of the episodes whose own gradient is not finite; one backward an episode.

    Args:
        loss: of one episode, a scalar.
        parameters: that the gradient is taken with respect to.
        episodes: of a step whose gradient is not finite.
    """
    trained = list(parameters)
    found = []
    for one in episodes.chunks(1):
        gradients = torch.autograd.grad(loss(one), trained, allow_unused=True)
        if not all(bool(gradient.isfinite().all()) for gradient in gradients if gradient is not None):
            found.append(excerpt(one.prompts[0], one.responses[0]))
    return found


def excerpt(prompt: str, response: str, length: int = 200) -> str:
    """A prompt and its response as one printable line; what a model wrote may hold anything.

    Example:
        >>> excerpt("2+2?", "four" + chr(27) + "[31m")
        "'2+2?' -> 'four\\\\x1b[31m'"
    """
    return " -> ".join(repr(text if len(text) <= length else text[:length] + "...") for text in (prompt, response))
