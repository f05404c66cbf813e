"""What a run should show, and what to try where it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """Something below what one should expect: what it is, and what to try."""

    said: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.said}: {self.remedy}."


def findings(iterations: Sequence[Mapping[str, Any]], dry_run: bool = False) -> list[Finding]:
    """Each thing that is below what one should expect; nothing of a run that goes well.

    Args:
        iterations: as ``summary.json`` has them.
        dry_run: whether the filter was only to look.

    Example:
        >>> well = {"em": 0.5, "reward": 0.4, "unfinished": 0.1, "kept_fraction": 0.6, "gold_loss": 1.0}
        >>> findings([well, well])
        []
        >>> idle = {**well, "kept_fraction": 1.0}
        >>> [one.said for one in findings([idle, {**idle, "gold_loss": 1.5}])]
        ['The filter dropped nothing and only cost time', 'The loss of the gold solutions rose from 1 to 1.5']
    """
    found: list[Finding] = []
    if not iterations:
        return found
    if not any(one.get("em") for one in iterations):
        remedy = (
            "warm-start longer (--sft.steps), give responses more room (--sampling.max_new_tokens), or take a stronger "
            "policy (--policy)"
        )
        found.append(Finding("No rollout was right, so there was nothing to learn from", remedy))
    rewards = _known(iterations, "reward")
    if rewards and not any(rewards):
        found.append(Finding("Every reward was 0", "hold the reward against your gold solutions with ippo doctor"))
    unfinished = _known(iterations, "unfinished")
    if unfinished and unfinished[-1] > 0.5:
        said = f"At the end {unfinished[-1]:.0%} of the responses did not end, and so count as wrong"
        found.append(Finding(said, "raise sampling.max_new_tokens, or warm-start longer (sft.steps)"))
    gold = _known(iterations, "gold_loss")  # known where a filter has scored
    if gold and not dry_run and all(one["kept_fraction"] == 1.0 for one in iterations):
        said = "The filter dropped nothing and only cost time"
        found.append(Finding(said, "see ippo doctor, or train with --filter none"))
    if len(gold) > 1 and gold[-1] > 1.1 * gold[0]:
        said = f"The loss of the gold solutions rose from {gold[0]:.3g} to {gold[-1]:.3g}"
        found.append(Finding(said, "lower ppo.learning_rate, raise ppo.kl_coef, or mix them in with ppo.ptx_coef"))
    return found


def _known(iterations: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [one[name] for one in iterations if one.get(name) is not None]
