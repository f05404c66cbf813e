"""The numbers behind the curves: what one rollout buffer looks like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ippo.episodes import Episodes
from ippo.functional import kl


def rollout_curves(episodes: Episodes) -> dict[str, float]:
    """Rewards, accuracy and the state of policy and critic, before anything is filtered.

    ``ppo/entropy`` is the mean surprise, -log pi, of the sampled tokens: an unbiased estimate that costs nothing.
    ``ppo/kl`` is the mean k1 estimate in nats a token against the reference policy.
    """
    mask = episodes.response_mask
    return {
        "reward/mean": float(episodes.rewards.mean()),
        "reward/unfinished": float((~episodes.finished).float().mean()),
        "reward/length": float(episodes.lengths.float().mean()),
        "ppo/kl": float(kl(episodes.old_logprobs, episodes.reference_logprobs)[mask].mean()),
        "ppo/entropy": float(-episodes.old_logprobs[mask].mean()),
        "ppo/explained_variance": explained_variance(episodes.values[mask], episodes.returns[mask]),
        **accuracy_curves(episodes.notes),
    }


def accuracy_curves(notes: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """Share of right answers, and of the classes of chains among the right ones.

    Faithful and unfaithful chains are counted among the right answers that could be checked; ``accuracy/unverifiable``
    is the share of the right answers that could not, ``accuracy/no_answer`` that of the responses without an answer
    that can be read.

    Args:
        notes: ``answer``, ``correct`` and ``chain`` of each episode, as :data:`ippo.data.Check` gives them.
    """
    right = [chain for chain, correct in zip(notes["chain"], notes["correct"], strict=True) if correct]
    chains = Counter(right)
    checked = len(right) - chains["unverifiable"]
    shares = {kind: chains[kind] / max(1, checked) for kind in ("wrong_step", "nonsense", "shortcut")}
    return {
        "accuracy/em": len(right) / len(notes["correct"]),
        "accuracy/no_answer": list(notes["answer"]).count(None) / len(notes["correct"]),
        "accuracy/unverifiable": chains["unverifiable"] / max(1, len(right)),
        "accuracy/false_positive": (checked - chains["faithful"]) / max(1, checked),
        **{f"accuracy/{kind}": share for kind, share in shares.items()},
    }


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 for a perfect critic, 0 for one that knows only the mean.

    Example:
        >>> import torch
        >>> explained_variance(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0]))
        0.75
        >>> explained_variance(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]))  # nothing to explain
        0.0
    """
    variance = float(returns.var(unbiased=False))
    return 1.0 - float((returns - values).var(unbiased=False)) / variance if variance > 0 else 0.0
