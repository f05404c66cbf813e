"""A task: prompts to learn from, gold solutions to be guided by, a reward to train on, and a check to be judged by."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ippo.errors import require
from ippo.rewards import Check, RewardFunction

Row = Mapping[str, Any]
"""``prompt``, ``solution`` and ``answer``, plus whatever columns the task's reward and check read."""

Rows = Sequence[Row]

Columns = dict[str, list[Any]]


def columns(rows: Rows) -> Columns:
    """Rows to columns, as rewards take them.

    Example:
        >>> columns([{"prompt": "2+2?", "answer": "4"}, {"prompt": "3+3?", "answer": "6"}])
        {'prompt': ['2+2?', '3+3?'], 'answer': ['4', '6']}
    """
    return {key: [row[key] for row in rows] for key in rows[0]}


@dataclass(frozen=True)
class Task:
    """Everything that a recipe needs to know of a problem set.

    Args:
        name: what the user calls it.
        train: demonstrations for the warm start; their prompts are also the ones PPO samples from.
        gold: a small set of clean step-by-step solutions; the gradient of their loss is the direction of I-PPO.
        validation: problems for the curves during training.
        test: problems for the figures at the end, looked at only then.
        reward: what training is rewarded by, one function or several; it may err.
        check: the truth, for curves and figures.
        equal: ``equal(answer, other)``, whether two answers count as one in a majority vote; where it takes further
            keywords, it gets the row's columns.
        notice: what a user must be told about this task before they read a figure.
        reward_weights: one factor for each reward; 1 each by default.

    Raises:
        UsageError: if a split is empty, or two splits share a prompt.
    """

    name: str
    train: Rows
    gold: Rows
    validation: Rows
    test: Rows
    reward: RewardFunction | Sequence[RewardFunction]
    check: Check
    equal: Callable[..., bool] = operator.eq
    notice: str = ""
    reward_weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for split in ("gold", "validation", "test", "train"):
            rows: Rows = getattr(self, split)
            require(len(rows) > 0, f"task.{split}", len(rows), "a task needs at least one row in this split")
            for prompt in {row["prompt"] for row in rows}:
                other = seen.setdefault(prompt, split)
                require(
                    other == split,
                    f"task.{split}",
                    prompt,
                    f"this prompt is also in the {other} split: remove it from one",
                )
