"""The numbers behind the curves: what one rollout buffer looks like, all ranks together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ippo.episodes import Episodes
from ippo.functional import kl
from ippo.ranks import gather, gather_texts


def rollout_curves(episodes: Episodes) -> dict[str, float]:
    """Rewards, accuracy and the state of policy and critic, before anything is filtered; equal on all ranks.

    ``ppo/entropy`` is the mean surprise, -log pi, of the sampled tokens: an unbiased estimate that costs nothing.
    ``ppo/kl`` is the mean k1 estimate in nats a token against the reference policy.
    """
    correct, _ = gather(torch.tensor(list(episodes.notes["correct"]), device=episodes.rewards.device).bool())
    mask, divergence = episodes.response_mask, kl(episodes.old_logprobs, episodes.reference_logprobs)

    def mean(values: Tensor) -> float:
        return float(gather(values.float())[0].mean())

    return {
        "reward/mean": mean(episodes.rewards),
        "reward/unfinished": mean(~episodes.finished),
        "reward/length": mean(episodes.lengths),
        "reward/zero_variance": zero_variance(gather(episodes.rewards)[0], gather(episodes.groups)[0]),
        "ppo/kl": mean(divergence[mask]),
        "ppo/entropy": -mean(episodes.old_logprobs[mask]),
        "ppo/explained_variance": explained_variance(
            gather(episodes.values[mask])[0], gather(episodes.returns[mask])[0]
        ),
        **accuracy_curves({"correct": correct.tolist(), "chain": gather_texts(episodes.notes["chain"], mask.device)}),
    }


def accuracy_curves(notes: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """Share of right answers, and of the classes of unfaithful chains among the right ones.

    Args:
        notes: ``correct`` and ``chain`` of the episodes of all ranks.
    """
    chains = Counter(notes["chain"])
    right = sum(notes["correct"])
    unfaithful = {kind: count for kind, count in chains.items() if kind not in ("wrong", "faithful")}
    shares = {kind: unfaithful.get(kind, 0) / max(1, right) for kind in ("wrong_step", "nonsense", "shortcut")}
    return {
        "accuracy/em": right / len(notes["correct"]),
        "accuracy/false_positive": sum(unfaithful.values()) / max(1, right),
        **{f"accuracy/{kind}": share for kind, share in shares.items()},
    }


def zero_variance(rewards: Tensor, groups: Tensor) -> float:
    """Share of the groups whose rewards are all equal: comparing the samples of one prompt teaches nothing there.

    Example:
        >>> zero_variance(torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([3, 3, 5, 5]))
        0.5
    """
    members = [rewards[groups == group] for group in groups.unique()]
    return sum(bool((member == member[0]).all()) for member in members) / len(members)


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 for a perfect critic, 0 for one that knows only the mean.

    Example:
        >>> explained_variance(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0]))
        0.75
        >>> explained_variance(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]))  # nothing to explain
        0.0
    """
    variance = float(returns.var(unbiased=False))
    return 1.0 - float((returns - values).var(unbiased=False)) / variance if variance > 0 else 0.0
