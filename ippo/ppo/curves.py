"""The numbers behind the curves: what a rollout buffer and an update look like, all ranks together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ippo.distributed import gather, gather_texts, whole
from ippo.functional import clip_fraction, engine_gaps, kl, kl_loss
from ippo.ppo.options import PPOOptions
from ippo.rollout.episodes import Episodes


def rollout_curves(episodes: Episodes, rewards: Sequence[str] = ()) -> dict[str, float]:
    """Rewards, accuracy and the state of policy and critic, before anything is filtered; equal on all ranks.

    ``reward/raw`` is what the reward functions gave, and ``reward/mean`` what was earned, where unfinished responses
    meet their ceiling. Of several functions each has a curve of its own, over the episodes that it applies to.
    ``ppo/entropy`` is the mean surprise, -log pi, of the sampled tokens: an unbiased estimate that costs nothing.
    ``ppo/kl`` is the mean k1 estimate in nats a token against the reference policy.

    Args:
        episodes: of this rank.
        rewards: the names of the reward functions.
    """
    mask, divergence = episodes.response_mask, kl(episodes.old_logprobs, episodes.reference_logprobs)
    return {
        "reward/mean": _mean(episodes.rewards),
        **_of_functions(episodes, ("raw", *rewards)),
        "reward/unfinished": _mean(~episodes.finished),
        "reward/length": _mean(episodes.lengths),
        "reward/zero_variance": zero_variance(gather(episodes.rewards)[0], gather(episodes.groups)[0]),
        "ppo/kl": _mean(divergence[mask]),
        "ppo/entropy": -_mean(episodes.old_logprobs[mask]),
        "ppo/explained_variance": explained_variance(
            gather(episodes.values[mask])[0], gather(episodes.returns[mask])[0]
        ),
        **engine_curves(episodes),
        **accuracy_curves(_together(episodes)),
    }


def engine_curves(episodes: Episodes) -> dict[str, float]:
    """How far the engine is from the policy, where it tells its log-probabilities, and what makes up for it.

    ``ppo/engine_gap`` is the mean of |log pi - log q| in nats a token: rounding is some 1e-6 in float32 and 1e-2 in
    bfloat16, stale weights are more. ``ppo/importance`` is the mean weight of a token, near 1, and
    ``ppo/importance_cut`` the share of tokens whose weight is at the cap.
    """
    mask, engine = episodes.response_mask, episodes.engine_logprobs
    if engine is None:
        return {}
    gaps = engine_gaps(episodes.old_logprobs, engine, mask)[mask]
    curves = {"ppo/engine_gap": _mean(gaps)}
    if episodes.importance is not None:
        weights = episodes.importance[mask]
        curves["ppo/importance"] = _mean(weights)
        curves["ppo/importance_cut"] = _mean((episodes.old_logprobs - engine)[mask] > weights.log() + 1e-6)
    return curves


@torch.no_grad()
def add_up(
    sums: dict[str, float], episodes: Episodes, policy: Tensor, value: Tensor, logprobs: Tensor, ppo: PPOOptions
) -> None:
    """Add a micro-batch to the sums that :func:`update_curves` reads; episodes of weight 0 do not count.

    Args:
        sums: added to in place.
        episodes: of the micro-batch.
        policy, value: [n] their losses.
        logprobs: [n, t] of their tokens now.
        ppo: the clips.
    """
    counted, old, mask = episodes.weights > 0, episodes.old_logprobs, episodes.response_mask
    each = {
        "policy_loss": policy,
        "value_loss": value,
        "clip_fraction": clip_fraction(logprobs, old, mask, ppo.clip_low, ppo.clip_high),
        "policy_step": kl_loss(logprobs, old, mask, "k3"),
    }
    for name, values in each.items():
        sums[name] += float(values[counted].sum())
    sums["episodes"] += int(counted.sum())
    sums["tokens"] += int(episodes.lengths[counted].sum())


def add_norms(sums: dict[str, float], norms: Mapping[str, Tensor]) -> bool:
    """Add the norms of a step's gradients, before they are clipped, to the sums that :func:`update_curves` reads, if
    all of them are finite; whether they are.

    Args:
        sums: added to in place.
        norms: a scalar for the policy, and one for the critic where there is one.

    Example:
        >>> sums = {"steps": 0.0, "policy_grad_norm": 0.0}
        >>> add_norms(sums, {"policy": torch.tensor(0.5)}), sums
        (True, {'steps': 1.0, 'policy_grad_norm': 0.5})
        >>> add_norms(sums, {"policy": torch.tensor(float("inf"))}), sums["steps"]
        (False, 1.0)
    """
    found = {name: float(whole(norm)) for name, norm in norms.items()}
    if not all(map(math.isfinite, found.values())):
        return False
    sums["steps"] += 1
    for name, norm in found.items():
        sums[f"{name}_grad_norm"] += norm
    return True


def update_curves(sums: Mapping[str, float], first: Mapping[str, float]) -> dict[str, float]:
    """The curves of an update: means over its episodes, its tokens, and the loss of the gold solutions mixed in.

    ``ppo/policy_grad_norm`` and ``ppo/value_grad_norm`` are the gradients' norms before they are clipped, the mean of
    the steps that were taken. ``ppo/mismatch`` is how far the first step's policy is from the one that sampled. It has
    not moved by then, so whatever differs is a mistake: another numerical path in the engine, or dropout.

    Args:
        sums: over the update, ``episodes`` and ``tokens`` counted, ``ptx_loss`` over ``ptx_rows`` gold solutions, norms
            of gradients over ``steps``, and any other name over the episodes. Empty where nothing survived.
        first: the same after the first step, or empty.

    Example:
        >>> update_curves({"episodes": 4.0, "tokens": 60.0, "policy_step": 2.0}, {"episodes": 2.0, "policy_step": 0.0})
        {'ppo/update_tokens': 60.0, 'ppo/policy_step': 0.5, 'ppo/mismatch': 0.0}
    """
    counts = ("episodes", "tokens", "ptx_loss", "ptx_rows", "steps")
    seen, steps = max(1.0, sums.get("episodes", 0.0)), max(1.0, sums.get("steps", 0.0))
    curves = {"ppo/update_tokens": sums.get("tokens", 0.0)}
    for name, value in sums.items():
        if name not in counts:
            curves[f"ppo/{name}"] = value / (steps if name.endswith("_grad_norm") else seen)
    if sums.get("ptx_rows"):
        curves["ppo/ptx_loss"] = sums["ptx_loss"] / sums["ptx_rows"]
    if first:
        curves["ppo/mismatch"] = first["policy_step"] / max(1.0, first["episodes"])
    return curves


def accuracy_curves(extras: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """Share of right answers, and of the classes of chains among the right ones.

    Faithful and unfaithful chains are counted among the right answers that could be checked; ``accuracy/unverifiable``
    is the share of the right answers that could not, ``accuracy/no_answer`` that of the responses without an answer
    that can be read, ``accuracy/hacked`` that of the wrong ones that pass through a hole of the verifier. A share of
    nothing is left out.

    Args:
        extras: ``answer``, ``correct`` and ``chain`` of all ranks' episodes, as :data:`ippo.data.Check` gives them.
    """
    right = [chain for chain, correct in zip(extras["chain"], extras["correct"], strict=True) if correct]
    chains = Counter(right)
    checked = len(right) - chains["unverifiable"]
    curves = {
        "accuracy/em": len(right) / len(extras["correct"]),
        "accuracy/hacked": list(extras["chain"]).count("hacked") / len(extras["correct"]),
        "accuracy/no_answer": list(extras["answer"]).count(None) / len(extras["correct"]),
    }
    if right:
        curves["accuracy/unverifiable"] = chains["unverifiable"] / len(right)
    if checked:
        curves["accuracy/false_positive"] = (checked - chains["faithful"]) / checked
        curves |= {f"accuracy/{kind}": chains[kind] / checked for kind in ("wrong_step", "nonsense", "shortcut")}
    return curves


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


def _mean(values: Tensor) -> float:
    """Of the numbers of all ranks."""
    return float(gather(values.float())[0].mean())


def _of_functions(episodes: Episodes, names: Sequence[str]) -> dict[str, float]:
    """The mean of what each reward function gave where it applies; nothing of one that applies to no episode."""
    means = {}
    for name in names:
        given = [one for one in episodes.extras.get(f"reward_{name}", ()) if one is not None]
        known, _ = gather(torch.tensor(given, dtype=torch.float32, device=episodes.rewards.device))
        if len(known):
            means[f"reward/{name}"] = float(known.mean())
    return means


def _together(episodes: Episodes) -> dict[str, list[Any]]:
    """What :func:`accuracy_curves` reads, of all ranks' episodes; of an answer, whether there is one."""
    extras, device = episodes.extras, episodes.rewards.device

    def flags(values: Sequence[bool]) -> list[bool]:
        return gather(torch.tensor(list(values), device=device).bool())[0].tolist()

    return {
        "chain": gather_texts(extras["chain"], device),
        "correct": flags(extras["correct"]),
        "answer": [found or None for found in flags([answer is not None for answer in extras["answer"]])],
    }
