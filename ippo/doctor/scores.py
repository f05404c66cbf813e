"""Influence scores: the same by every backend, in every batch, and in half precision?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ippo.doctor.finding import Finding, grade, report
from ippo.functional.agreement import flipped


def disagreement(first: Tensor, second: Tensor) -> float:
    """The largest difference of two sets of scores, as a share of the largest score.

    Example:
        >>> disagreement(torch.tensor([1.0, -4.0]), torch.tensor([1.0, -3.0]))
        0.25
    """
    largest = torch.maximum(first.abs().max(), second.abs().max())
    return float((first - second).abs().max() / largest) if largest > 0 else 0.0


def backends(scores: Mapping[str, Tensor], refused: Mapping[str, str], half: bool) -> Finding:
    """All backends that can score this model give the same scores.

    Args:
        scores: [n] by each backend, ``"loop"`` among them: one plain backward an episode, the oracle.
        refused: why each of the others cannot.
        half: whether the policy has less than float32 precision.
    """
    apart = {name: disagreement(own, scores["loop"]) for name, own in scores.items() if name != "loop"}
    told = [f"{name} {share:.1e}" for name, share in apart.items()]
    told += [f"{name} refuses: {reason}" for name, reason in refused.items()]
    found = f"from loop, of the largest score: {'; '.join(told)}"
    bounds = (0.1, 0.3) if half else (1e-3, 1e-2)
    if not apart:
        return Finding("backends", "warning", found, "scoring takes one backward an episode: expect it to be slow")
    good = next((name for name, share in apart.items() if grade(share, *bounds) == "ok"), "loop")
    remedy = f"score with ExactScorer(backend={good!r}), and report the model: its layers are treated wrongly"
    return report("backends", grade(max(apart.values()), *bounds), found, remedy)


def composition(alone: Tensor, together: Tensor, half: bool) -> Finding:
    """A score is the episode's own, whoever shares its batch.

    Args:
        alone: [n] scored one at a time, without padding.
        together: [n] the same episodes in one padded batch.
        half: whether the policy has less than float32 precision.
    """
    apart = disagreement(alone, together)
    state = grade(apart, *((0.1, 0.3) if half else (1e-3, 1e-2)))
    found = f"alone or in a batch: {apart:.1e} of the largest score apart, {flipped(alone, together):.0%}"
    remedy = "the model lets rows or padding mix (a recurrent state, batch statistics, ignored masks): use another one"
    return report("batch composition", state, f"{found} of signs flip", remedy)


def half_precision(precise: Tensor, half: Tensor, own: bool) -> Finding:
    """How many episodes bfloat16 would keep or drop wrongly.

    Args:
        precise: [n] scores in float32.
        half: [n] scores in bfloat16, direction and all.
        own: whether the policy itself is in half precision; where it is not, this is what it would lose.
    """
    share = flipped(precise, half)
    found = f"bfloat16 {'flips' if own else 'would flip'} {share:.0%} of {len(precise)} signs"
    state = grade(share, warning=0.15, wrong=0.3)
    if not own:
        return Finding("bfloat16", "ok", found, "" if state == "ok" else "stay in float32, at least for the scoring")
    return report("bfloat16", state, found, "load the policy in float32, or keep with a margin (TopFraction)")
