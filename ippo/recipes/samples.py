"""Some answers to read: to the same problems before and after, and those of the highest and the lowest score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyarrow import parquet
from rich.console import Console

from ippo.callbacks.tensorboard.answers import verdict

_LONGEST = 300  # characters of a text that are shown
_PROBLEMS = 2  # the report shows more


def print_answers(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The first problems, each with its first answer before PPO and after.

    Args:
        before, after: of the same problems, as :class:`ippo.recipes.judged.Judged` keeps them.
        console: where to print.
    """
    for number, (first, last) in enumerate(zip(before[:_PROBLEMS], after, strict=False), start=1):
        _print(console, f"Problem {number}: {_shown(first['prompt'])}")
        for when, answer in (("before", first), ("after", last)):
            reward = "no reward" if answer["reward"] is None else f"reward {answer['reward']:.3g}"
            _print(console, f"  {when}, {verdict(answer)}, {reward}: {_shown(answer['response'])}")


def print_extremes(episodes: Path, console: Console) -> None:
    """Of the last iteration that was scored, the episodes with the highest and the lowest score.

    Args:
        episodes: the run's directory of them; those of the first rank are looked at.
        console: where to print.
    """
    files = sorted(episodes.glob("iteration-*-rank-00.parquet"))
    if not files or "score" not in parquet.read_schema(files[-1]).names:
        return
    table = parquet.read_table(files[-1], columns=["response", "reward", "score", "kept"]).to_pylist()
    known = [row for row in table if row["score"] is not None and row["score"] == row["score"]]
    scored = sorted(known, key=lambda row: row["score"])
    if len(scored) < 2:
        return
    for name, row in (("Highest", scored[-1]), ("Lowest", scored[0])):
        fate = "kept" if row["kept"] else "dropped"
        told = f"{name} score {row['score']:.3g}, reward {row['reward']:.3g}, {fate}: {_shown(row['response'])}"
        _print(console, told)


def _shown(text: str) -> str:
    """A text in one line, without the signs by which a terminal is steered."""
    plain = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    return plain if len(plain) <= _LONGEST else plain[:_LONGEST] + " …"


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)
