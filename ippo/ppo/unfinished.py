"""Responses that do not end: what they earn at most, and what is said when they are many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from ippo.ppo.gold import gold_share


def with_ceiling(rewards: Tensor, finished: Tensor, ceiling: float) -> Tensor:
    """Rewards where an unfinished response earns the smaller of ``ceiling`` and what it was given.

    So it never beats a finished wrong one that says the same: to go on and on pays nowhere.

    Args:
        rewards: [n] what reward functions gave.
        finished: [n] bool.
        ceiling: ``ppo.unfinished_reward``.

    Example:
        >>> with_ceiling(torch.tensor([1.0, 1.0, -1.0]), torch.tensor([True, False, False]), 0.0)
        tensor([ 1.,  0., -1.])
    """
    return torch.where(finished, rewards, rewards.clamp(max=ceiling))


MANY = 0.5
"""Share of the responses above which it is told that they do not end."""


def complaint(share: float, max_new_tokens: int, ceiling: float, longest_gold: int | None = None) -> str:
    """The line that says why so many responses earn so little, and what to change.

    Args:
        share: of the responses that did not end.
        max_new_tokens: of the sampling.
        ceiling: what each of them earns at most.
        longest_gold: tokens of the longest gold solution, its end included; None where there is none to compare with.

    Example:
        >>> cause, remedy = complaint(0.75, 8, 0.0, longest_gold=21).split(". ")
        >>> print(remedy)
        Gold solutions take up to 21 tokens: raise sampling.max_new_tokens
    """
    if longest_gold is not None and longest_gold > max_new_tokens:
        remedy = f"Gold solutions take up to {longest_gold} tokens: raise sampling.max_new_tokens"
    else:
        remedy = (
            "If their texts are cut, raise sampling.max_new_tokens; if they go on after the answer, warm-start longer "
            "(sft.steps), or declare the token that ends them (tokenizer.eos_token, or eos_token_id of the model's "
            "generation config)"
        )
    return (
        f"{share:.0%} of the responses did not end within sampling.max_new_tokens = {max_new_tokens}: each counts as "
        f"wrong and earns at most {ceiling:g} (ppo.unfinished_reward). {remedy}"
    )


class UnfinishedWarning:
    """Says once why so many responses earn nothing."""

    def __init__(self) -> None:
        self._told = False

    def look_at(self, curves: Mapping[str, float], module: Any) -> None:
        """Warn where ``reward/unfinished`` is high, and has not been before; the module knows the gold solutions."""
        share = curves["reward/unfinished"]
        if share > MANY and not self._told:
            self._told = True
            gold = getattr(getattr(module.trainer, "datamodule", None), "gold", None)
            longest = int(gold_share(module, "direction").lengths.max()) if gold else None
            rank_zero_warn(complaint(share, module.sampling.max_new_tokens, module.ppo.unfinished_reward, longest))
