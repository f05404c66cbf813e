"""The report as one file of HTML that asks nothing of the network."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ippo.callbacks.tensorboard.answers import verdict as in_a_word
from ippo.files import whole
from ippo.recipes.run_report.charts import HEIGHT, LEFT, RIGHT, WIDTH, charts
from ippo.recipes.run_report.classes import Kept, kept_by_class, rewarded_above
from ippo.recipes.run_report.record import Record
from ippo.recipes.run_report.tokens import Shown, shown
from ippo.recipes.run_report.verdict import verdict

EXTREMES = 3
"""Episodes of the highest scores, and of the lowest, of those that are rewarded and of the others."""

_FIGURES = {
    "em": "EM",
    "em_greedy": "greedy EM",
    "mv": "majority vote",
    "pass_at_k": "Pass@k",
    "reward": "what the reward believes",
    "false_positive": "right by unfaithful reasoning",
    "hacked": "wrong, through the verifier's hole",
}


def write_report(run: Path) -> Path:
    """Write ``report.html`` into a run's directory.

    Args:
        run: the directory; of a run that has ended, was interrupted, or is not done.

    Returns:
        The file.

    Raises:
        UsageError: if the directory holds no run.
        StorageError: if the file cannot be written.
    """
    target = run / "report.html"
    text = report(Record(run))
    with whole(target) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return target


def report(run: Record) -> str:
    """The page. Whatever a model wrote is escaped, and the page forbids itself scripts and requests."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    iteration, extremes = _extremes(run)
    return environment.get_template("report.html.jinja").render(
        name=run.path.resolve().name,
        place=shlex.quote(str(run.path)),
        options=run.options,
        summary=run.summary,
        verdict=verdict(run),
        figures=_figures(run),
        charts=charts(run),
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=RIGHT,
        seconds=_seconds(run),
        kept=_kept(run),
        dry_run=run.dry_run,
        iteration=iteration,
        extremes=extremes,
        coloured_tokens=any(len(one.pieces) > 1 for some in extremes.values() for one in some),
        answers=_answers(run),
        of=run.answers.get("of", "test"),
        config=(run.path / "config.yaml").read_text(),
    )


def _kept(run: Record) -> dict[str, tuple[Kept, Kept]]:
    """By class, what the filter kept; of one that only looked, what scored above zero."""
    if not run.scored()[1]:
        return {}
    episodes = run.episodes(("chain", "reward", "kept", "score"))
    if run.dry_run:
        episodes["kept"] = [score is not None and score > 0 for score in episodes["score"]]
    return kept_by_class(episodes)


def _extremes(run: Record) -> tuple[int, dict[str, list[Shown]]]:
    """The last iteration that was scored, and its episodes of the highest and the lowest scores by a heading."""
    iteration, rows = run.scored()
    largest = max((abs(row["score"]) for row in rows), default=0.0)
    level = rewarded_above([row["reward"] for row in rows])
    rows = list({(row["prompt"], row["response"]): row for row in rows}.values())  # a text may be sampled twice
    found = {}
    for name, some in (
        ("Rewarded", [row for row in rows if row["reward"] > level]),
        ("Not rewarded", [row for row in rows if not row["reward"] > level]),
    ):
        count = min(EXTREMES, len(some) // 2)
        if count:
            found[f"{name}, highest scores"] = [shown(row, largest) for row in some[-count:][::-1]]
            found[f"{name}, lowest scores"] = [shown(row, largest) for row in some[:count]]
    return iteration, found


def _figures(run: Record) -> list[tuple[str, str, str]]:
    """Rows of the table: name, before, after."""
    before, after = run.summary.get("sft") or {}, run.summary.get("trained") or {}
    rows = []
    for key, name in _FIGURES.items():
        if before.get(key) is not None or after.get(key) is not None:
            rows.append((name, _share(before.get(key)), _share(after.get(key))))
    return rows


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _seconds(run: Record) -> dict[str, float]:
    """Of the phases of all iterations together."""
    phases = ("rollout", "scoring", "update")
    return {phase: sum(one["seconds"][phase] for one in run.iterations) for phase in phases}


def _answers(run: Record) -> list[dict[str, Any]]:
    """A problem with its answer before and after."""
    before, after = (run.answers.get(when, []) for when in ("before", "after"))
    return [
        {"prompt": first["prompt"], "before": _answer(first), "after": _answer(last)}
        for first, last in zip(before, after, strict=False)
    ]


def _answer(answer: dict[str, Any]) -> dict[str, str]:
    reward = answer.get("reward")
    told = "" if reward is None else f"reward {reward:.3g}"
    return {"text": answer["response"], "verdict": in_a_word(answer), "reward": told}
