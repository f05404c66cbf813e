"""What a run should show, and what to try where it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def below(iterations: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each thing that is below what one should expect; nothing of a run that goes well.

    Args:
        iterations: as ``summary.json`` has them.

    Example:
        >>> well = {"em": 0.5, "reward": 0.4, "unfinished": 0.1, "kept_fraction": 0.6, "gold_loss": 1.0}
        >>> below([well, well])
        []
        >>> idle = {**well, "kept_fraction": 1.0}
        >>> [line.partition(":")[0] for line in below([idle, {**idle, "gold_loss": 1.5}])]
        ['The filter dropped nothing', 'The loss of the gold solutions rose from 1 to 1.5']
    """
    said: list[str] = []
    if not iterations:
        return said
    if not any(one.get("em") for one in iterations):
        said.append(
            "No rollout was right, so there was nothing to learn from: warm-start longer (--sft.steps), give responses "
            "more room (--sampling.max_new_tokens), or take a stronger policy (--policy)."
        )
    rewards = _known(iterations, "reward")
    if rewards and not any(rewards):
        said.append("Every reward was 0: hold the reward against your gold solutions with ippo doctor.")
    unfinished = _known(iterations, "unfinished")
    if unfinished and unfinished[-1] > 0.5:
        said.append(
            f"At the end {unfinished[-1]:.0%} of the responses did not end, and so count as wrong: raise "
            "sampling.max_new_tokens, or warm-start longer (sft.steps)."
        )
    gold = _known(iterations, "gold_loss")  # known where a filter has scored
    if gold and all(one["kept_fraction"] == 1.0 for one in iterations):
        said.append(
            "The filter dropped nothing: it costs time and changes nothing. See ippo doctor, or train with "
            "--filter none."
        )
    if len(gold) > 1 and gold[-1] > 1.1 * gold[0]:
        said.append(
            f"The loss of the gold solutions rose from {gold[0]:.3g} to {gold[-1]:.3g}: the policy moves away from "
            "them. Lower ppo.learning_rate, raise ppo.kl_coef, or mix them in with ppo.ptx_coef."
        )
    return said


def _known(iterations: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [one[name] for one in iterations if one.get(name) is not None]
