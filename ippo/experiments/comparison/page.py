"""The report of a comparison: ``report.md``, its curves, and ``results.json`` with every number in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ippo.experiments.comparison.arms import Arm
from ippo.experiments.comparison.cells import Summary
from ippo.experiments.comparison.statistics import (
    FIGURES,
    QUALITY,
    TESTED,
    Figure,
    best,
    common_budget,
    interval,
    shown,
    signed,
    within,
)
from ippo.files import whole

SFT = "SFT"
"""The warm start that all arms of a seed go out from, as an arm."""


@dataclass(frozen=True)
class Comparison:
    """What was run.

    Args:
        runs: of each arm, its runs, in the order of ``seeds``.
        arms: by name.
        seeds: of the runs.
        base: name of the arm that the others are held against.
        command: that made the report.
        rates: of a tuned arm, each rate with its mean figure on the tuning seeds; the best was taken.
        hardware: in words.
    """

    runs: Mapping[str, Sequence[Summary]]
    arms: Mapping[str, Arm]
    seeds: Sequence[int]
    base: str
    command: str
    hardware: str
    rates: Mapping[str, Mapping[float, float]]

    def judged(self, arm: str, figure: Figure) -> list[float]:
        """One figure of each of an arm's runs; of :data:`SFT`, where it is a figure of the test split."""
        runs = self.runs[self.base if arm == SFT else arm]
        return [figure({"trained": run["sft"]} if arm == SFT else run) for run in runs]

    def differences(self, arm: str, figure: Figure) -> tuple[float, float, float]:
        """Of an arm minus the base, paired by seed: mean and interval."""
        pairs = zip(self.judged(arm, figure), self.judged(self.base, figure), strict=True)
        return interval([ours - theirs for ours, theirs in pairs])

    def label(self, arm: str) -> str:
        return SFT if arm == SFT else self.arms[arm].label

    @property
    def budgets(self) -> dict[str, float]:
        """Tokens and seconds that all runs can be cut to."""
        every = [run for runs in self.runs.values() for run in runs]
        return {of: common_budget(every, of) for of in ("tokens", "seconds")}


def write(comparison: Comparison, out: Path) -> Path:
    """Write both files; returns the report's path."""
    for name, text in (("report.md", report(comparison)), ("results.json", json.dumps(results(comparison), indent=2))):
        with whole(out / name) as unfinished:
            unfinished.write_text(text.rstrip("\n") + "\n")
    return out / "report.md"


def results(comparison: Comparison) -> dict[str, Any]:
    """Every number of the report, and each run's figures."""
    return {
        "command": comparison.command,
        "hardware": comparison.hardware,
        "seeds": list(comparison.seeds),
        "base": comparison.base,
        "rates": {
            arm: {f"{rate:g}": found for rate, found in rates.items()} for arm, rates in comparison.rates.items()
        },
        "budgets": comparison.budgets,
        "runs": {
            arm: [
                {name: found for name, figure in FIGURES.items() if not np.isnan(found := figure(run))}
                | {"stopped_by": run["stopped_by"]}
                for run in runs
            ]
            for arm, runs in comparison.runs.items()
        },
        "differences": {
            arm: {name: comparison.differences(arm, FIGURES[name]) for name in QUALITY}
            for arm in (SFT, *comparison.runs)
            if arm != comparison.base
        },
    }


def report(comparison: Comparison) -> str:
    """The page as Markdown."""
    start = [run["sft"] for run in next(iter(comparison.runs.values()))]
    k, n = start[0]["k"], start[0]["n"]
    sft = [shown(float(np.mean(comparison.judged(SFT, FIGURES[name])))) for name in TESTED]
    blank = [""] * (len(FIGURES) - len(sft))
    others = [arm for arm in comparison.runs if arm != comparison.base]
    quality = {name: FIGURES[name] for name in QUALITY}
    lines = [
        "# Comparison",
        "",
        f"`{comparison.command}` · seeds {', '.join(map(str, comparison.seeds))} · {comparison.hardware}.",
        "",
        f"Means over {len(comparison.seeds)} seeds. EM, MV@{k} and Pass@{k} are of {k} answers to each of {n} test "
        "problems, *greedy EM* is of one answer to each, every token the likeliest; "
        "*unfaithful* is the share of its right answers that are reached by unfaithful reasoning, *hacked* the share "
        "of all answers that are wrong and pass through a hole of the training verifier, *reward* what that verifier "
        "gives to the answers that EM is of. All arms of a seed "
        "start from one warm start, which is the arm *SFT*, and generate as many episodes an iteration. Seconds are of "
        "one thread, with other runs beside it.",
        "",
        *table(["arm", *FIGURES], [[SFT, *sft, *blank], *(_figures(comparison, arm) for arm in comparison.runs)]),
        "",
    ]
    if others:
        lines += [
            f"## Against {comparison.arms[comparison.base].label}",
            "",
            "Paired by seed: mean difference and bootstrap 95 % interval.",
            "",
            *table(["arm", *QUALITY], [_differences(comparison, arm, quality) for arm in (SFT, *others)]),
            "",
            "## At equal cost",
            "",
            *_at_equal_cost(comparison, others),
            "",
        ]
    return "\n".join([*lines, *_tuning(comparison), "![Curves of the rollouts](curves.png)"])


def screen(comparison: Comparison) -> Table:
    """What fits on a screen: EM of each arm, its unfaithful share or, where the verifier was gamed, its hacked one, and
    how far they are from the base."""
    gamed = any(FIGURES["hacked"](run) for runs in comparison.runs.values() for run in runs)
    second = "hacked" if gamed else "unfaithful"
    grid = Table(title=f"{len(comparison.seeds)} seeds, minus {comparison.arms[comparison.base].label} in pairs, 95 %")
    for head in ("", "EM", "minus base", second, "minus base"):
        grid.add_column(head, justify="right" if head else "left")
    for arm in comparison.runs:
        cells = [comparison.label(arm)]
        for figure in (FIGURES["EM"], FIGURES[second]):
            difference = signed(*comparison.differences(arm, figure)).replace(" ", "\n", 1)
            cells += [f"{np.mean(comparison.judged(arm, figure)):.3f}", "" if arm == comparison.base else difference]
        grid.add_row(*cells)
    return grid


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table.

    Example:
        >>> table(["arm", "EM"], [["PPO", "0.5"]])
        ['| arm | EM |', '|---|---|', '| PPO | 0.5 |']
    """
    return [f"| {' | '.join(row)} |" if row else f"|{'---|' * len(head)}" for row in (head, (), *rows)]


def _figures(comparison: Comparison, arm: str) -> list[str]:
    means = [float(np.mean(comparison.judged(arm, figure))) for figure in FIGURES.values()]
    return [comparison.label(arm), *map(shown, means)]


def _differences(comparison: Comparison, arm: str, figures: Mapping[str, Figure]) -> list[str]:
    return [comparison.label(arm), *(signed(*comparison.differences(arm, figure)) for figure in figures.values())]


def _at_equal_cost(comparison: Comparison, others: Sequence[str]) -> list[str]:
    tokens, seconds = comparison.budgets["tokens"], comparison.budgets["seconds"]
    figures: dict[str, Figure] = {
        f"EM at {tokens:,.0f} update tokens": lambda run: within(run, tokens, "tokens"),
        f"EM at {seconds:,.0f} s": lambda run: within(run, seconds, "seconds"),
    }
    own = [f"{np.mean(comparison.judged(comparison.base, figure)):.3f}" for figure in figures.values()]
    rows = [[f"{comparison.label(comparison.base)} itself", *own]]
    rows += [_differences(comparison, arm, figures) for arm in others]
    return [
        "EM of the rollouts, the mean of the last five iterations that the budget pays for: what the cheapest run cost "
        "as a whole. Seconds count rollouts, scoring and updates. Rows below the first are differences. Mind the "
        "schedule: where the learning rate falls, a dearer run is cut while its rate is high; for an arm that ends its "
        "schedule at this budget give one with fewer `trainer.max_epochs`.",
        "",
        *table(["arm", *figures], rows),
    ]


def _tuning(comparison: Comparison) -> list[str]:
    if not comparison.rates:
        return []
    rows = []
    for arm, rates in comparison.rates.items():
        each = ", ".join(f"{rate:g}: {found:.3f}" for rate, found in rates.items())
        rows.append([comparison.arms[arm].label, f"{best(rates):g}", each])
    return [
        "## Learning rates",
        "",
        "Of each arm the one with the best test EM on the tuning seeds, which are not among the seeds above.",
        "",
        *table(["arm", "taken", "mean EM of each"], rows),
        "",
    ]
