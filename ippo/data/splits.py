"""From a data set's rows to the four splits of a task: train, gold, validation and test."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ippo.data.source import Source
from ippo.data.task import Row, Rows, Task
from ippo.errors import UsageError, require
from ippo.rewards import AnswerFormat, sound


@dataclass(frozen=True)
class SplitOptions:
    """How much of a data set goes where. What it has no split for is taken from its training rows.

    Args:
        gold_size: clean solutions for the direction of I-PPO, taken from the training rows; trained on by
            ``ppo.ptx_coef`` alone. Rows whose solution writes down a false sum (:func:`ippo.rewards.sound`) are passed
            over.
        validation_size: problems for the curves during training.
        test_size: problems for the figures at the end; all that there are when null, or a fifth of the rows where
            the data set has no test split.
        train_size: problems to train on; all that are left when null.
        seed: which rows are drawn; independent of the run's seed.
        overlap: a question that is also in the data set's own test or validation split is ``"refuse"``-d, or
            ``"drop"``-ped from the training rows and counted.
        too_long: a prompt or gold solution that the policy's context cannot hold is ``"refuse"``-d, or ``"drop"``-ped
            and counted. Nothing is ever cut.
    """

    gold_size: int = 256
    validation_size: int = 128
    test_size: int | None = None
    train_size: int | None = None
    seed: int = 0
    overlap: Literal["refuse", "drop"] = "refuse"
    too_long: Literal["refuse", "drop"] = "refuse"

    def __post_init__(self) -> None:
        for name in ("gold_size", "validation_size", "test_size", "train_size"):
            size = getattr(self, name)
            require(size is None or size >= 1, f"splits.{name}", size, "a split needs at least one row")


def task_from(
    name: str,
    source: Source,
    to_row: Callable[[dict[str, Any]], Row | None],
    answers: AnswerFormat,
    path: str | Path | None = None,
    options: SplitOptions = SplitOptions(),
) -> Task:
    """Read a data set and make a task of it.

    Args:
        name: what the user calls the task.
        source: where its rows are.
        to_row: a row of the task out of one of the data set, or None where it is of no use (no answer, no text).
        answers: how answers are read, compared and rewarded.
        path: a local copy; the hub when None.
        options: sizes of the splits.

    Raises:
        UsageError: if nothing can be read, a column is missing, a split comes out empty, or two splits overlap.
    """
    return task_of(name, source.read(path), to_row, answers, str(path or source.hub), options)


def task_of(
    name: str,
    found: Mapping[str, Sequence[dict[str, Any]]],
    to_row: Callable[[dict[str, Any]], Row | None],
    answers: AnswerFormat,
    where: str,
    options: SplitOptions,
) -> Task:
    """Make a task of what was read.

    Args:
        name, to_row, answers, options: see :func:`task_from`.
        found: the rows of each split.
        where: they come from, for what is said of them.

    Raises:
        UsageError: if a split comes out empty, or two splits overlap.
    """
    usable = {split: [row for raw in rows if (row := to_row(raw)) is not None] for split, rows in found.items()}
    for split, rows in usable.items():
        require(bool(rows), "task_path", where, f"its {split} split has no usable row ({len(found[split])} were read)")
    useless = sum(map(len, found.values())) - sum(map(len, usable.values()))
    splits, dropped = divide(usable, options)
    notices = [
        f"{useless} rows without a usable question or answer were left out." if useless else "",
        f"{dropped} training questions that are also in another split were dropped." if dropped else "",
    ]
    return Task(
        name,
        **splits,
        reward=answers.reward,
        check=answers.check,
        equal=answers.equal,
        notice=" ".join(filter(None, notices)),
    )


def divide(found: Mapping[str, Rows], options: SplitOptions) -> tuple[dict[str, Any], int]:
    """The four splits, and how many training rows were dropped because another split has their question.

    Each question is taken once, in an order that only ``options.seed`` decides. A data set with a test split alone is
    divided like one with a training split alone.

    Raises:
        UsageError: if there are too few rows, or an overlap that is not to be dropped.
    """
    here = ", ".join(found) or "none"
    require("train" in found or "test" in found, "task_path", here, "one split must be called train, or test")
    rng = random.Random(options.seed)
    given = {split: _shuffled(rows, rng) for split, rows in sorted(found.items())}
    pool = given.pop("train", None) or given.pop("test")
    held = {row["prompt"]: split for split, rows in given.items() for row in rows}
    shared = [row["prompt"] for row in pool if row["prompt"] in held]
    if shared and options.overlap == "refuse":
        where = (
            f"{len(shared)} training questions are also in the {held[shared[0]]} split, the first: {shared[0][:80]!r}"
        )
        raise UsageError("splits.overlap", options.overlap, f"{where}. Use drop, or remove them from your copy")
    pool = [row for row in pool if row["prompt"] not in held]
    gold = [row for row in pool if sound(row["solution"])][: options.gold_size]
    enough = f"only {len(gold)} of {len(pool)} training rows have a solution without a false sum: use less"
    require(len(gold) == options.gold_size, "splits.gold_size", options.gold_size, enough)
    taken = {row["prompt"] for row in gold}
    pool = [row for row in pool if row["prompt"] not in taken]
    splits: dict[str, Rows] = {"gold": gold}
    for split, size in (("validation", options.validation_size), ("test", options.test_size)):
        rows = given.get(split)
        if rows is None:
            size = size if size is not None else max(1, len(pool) // 5)
            remedy = f"only {len(pool)} training rows are left to take them from: use less, or give more rows"
            require(size < len(pool), f"splits.{split}_size", size, remedy)
            rows, pool = pool[:size], pool[size:]
        splits[split] = rows[:size]
    require(bool(pool), "splits.gold_size", options.gold_size, "it leaves no row to train on: use less")
    return {**splits, "train": pool[: options.train_size]}, len(shared)


def _shuffled(rows: Rows, rng: random.Random) -> list[Row]:
    """Each prompt's first row, in random order."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row["prompt"], row)
    return rng.sample(list(first.values()), len(first))
