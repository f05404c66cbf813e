"""What a run says at its end: a table for people, and ``summary.json`` for programs."""

from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ippo.recipes.expectations import findings

_PACKAGES = ("torch", "lightning", "transformers", "torchmetrics", "jsonargparse")


Scores = dict[str, Any]
"""Shares ``em``, ``mv``, ``pass_at_k``, ``false_positive``, ``unverifiable`` and ``hacked`` of ``k`` answers to ``n``
problems, ``em_greedy`` of the greedy answer to each, and ``reward``, what the training believes, where it was asked."""


def scores(tested: Mapping[str, float], samples: int, problems: int) -> Scores:
    """The test metrics under the names of ``summary.json``.

    A share of nothing is None: ``unverifiable`` where nothing was right, ``false_positive`` where nothing that was
    right could be checked.
    """
    names = ["em", "em_greedy", "mv", "pass@k", "false_positive", "unverifiable", "hacked"]
    names += ["reward"] if "test/reward" in tested else []
    found: Scores = {name.replace("@", "_at_"): tested.get(f"test/{name}") for name in names}
    return {**found, "k": samples, "n": problems}


def summarise(
    sft: Scores,
    trained: Scores | None,
    iterations: Sequence[dict[str, Any]],
    stopped_by: str,
    seed: int,
    interrupted: bool = False,
) -> dict[str, Any]:
    """The contents of ``summary.json``; ``trained`` is None where the run was interrupted before it was tested."""
    return {
        "sft": sft,
        "trained": trained,
        "iterations": list(iterations),
        "stopped_by": stopped_by,
        "interrupted": interrupted,
        "seed": seed,
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of Python and of what a result depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def print_scores(judged: Mapping[str, Scores], console: Console) -> None:
    """The table: a column for each policy, under its heading."""
    first, *_ = judged.values()
    k = first["k"]
    table = Table(title=f"{first['n']} test problems, {k} answers each", title_justify="left")
    table.add_column("", justify="left")
    for heading in judged:
        table.add_column(heading, justify="right")
    rows = {
        "em": "EM",
        "em_greedy": "greedy EM",
        "mv": f"MV@{k}",
        "pass_at_k": f"Pass@{k}",
        "false_positive": "right by unfaithful reasoning",
    }
    if any(one["unverifiable"] for one in judged.values()):
        rows["false_positive"] += ", of the checkable"
        rows["unverifiable"] = "right, reasoning not checkable"
    if any(one.get("hacked") for one in judged.values()):
        believed = {"reward": "reward: what the verifier believes"} if "reward" in first else {}
        rows = {**believed, **rows, "hacked": "wrong, through the verifier's hole"}
    for key, label in rows.items():
        table.add_row(label, *("–" if one.get(key) is None else f"{one[key]:.3f}" for one in judged.values()))
    console.print(table)


def print_report(summary: dict[str, Any], warm_start_seconds: float, console: Console, dry_run: bool = False) -> None:
    """The table of warm start against trained policy, and where the time went.

    Args:
        summary: of the run.
        warm_start_seconds: that it took.
        console: where to print.
        dry_run: whether the filter was only to look.
    """
    iterations = summary["iterations"]
    judged = {"warm start": summary["sft"], "trained": summary["trained"]}
    print_scores({name: one for name, one in judged.items() if one is not None}, console)
    phases = {phase: sum(one["seconds"][phase] for one in iterations) for phase in ("rollout", "scoring", "update")}
    spent = ", ".join(
        f"{phase} {seconds:.0f} s" for phase, seconds in {"warm start": warm_start_seconds, **phases}.items()
    )
    kept = sum(one["kept_fraction"] for one in iterations) / max(1, len(iterations))
    console.print(f"Time: {spent}.")
    if fast := speed([one.get("speed", {}) for one in iterations]):
        console.print(f"Speed: {fast}.")
    console.print(
        f"{len(iterations)} iterations, on average {kept:.0%} of the episodes kept; "
        f"stopped by: {summary['stopped_by']}."
    )
    for finding in findings(iterations, dry_run):
        console.print(str(finding))


def speed(iterations: Sequence[Mapping[str, float]]) -> str:
    """The medians of all iterations but the first, which compiles and warms up, and the most memory of any.

    Example:
        >>> speed([{"time/iteration": 9.0}, {"time/iteration": 2.0, "time/rollout_tokens": 5e3, "time/memory": 1.25}])
        'rollout 5,000 tokens a second, an iteration 2 s, at most 1.2 GiB'
    """
    found = {}
    for name in dict.fromkeys(name for one in iterations for name in one):
        values = [one[name] for one in iterations[1:] or iterations if name in one]
        found[name] = statistics.median(values) if values else math.nan
    forms = {
        "time/rollout_tokens": "rollout {:,.0f} tokens a second",
        "time/update_tokens": "update {:,.0f} tokens a second",
        "time/iteration": "an iteration {:.3g} s",
        "time/peak_share": "updates at {:.0%} of the card's peak",
    }
    parts = [form.format(found[name]) for name, form in forms.items() if not math.isnan(found.get(name, math.nan))]
    memory = [one["time/memory"] for one in iterations if "time/memory" in one]
    return ", ".join([*parts, *([f"at most {max(memory):.2g} GiB"] if memory else [])])


def print_export(folder: Path, max_new_tokens: int, chat: bool, console: Console) -> None:
    """Where the policy is, and the three lines that generate from it."""
    question = "How many is 3 + 4?"
    prompt = repr([{"role": "user", "content": question}] if chat else question)
    console.print(f"Policy, as a Hugging Face directory: {folder}. To generate from it:")
    lines = (
        "from transformers import pipeline",
        f'policy = pipeline("text-generation", "{folder}")',
        f"print(policy({prompt}, max_new_tokens={max_new_tokens}, return_full_text=False))",
    )
    for line in lines:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
