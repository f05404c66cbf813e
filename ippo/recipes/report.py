"""What a run says at its end: a table for people, and ``summary.json`` for programs."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

_PACKAGES = ("torch", "lightning", "transformers", "torchmetrics", "jsonargparse")


def scores(tested: Mapping[str, float], samples: int, problems: int) -> dict[str, float | int]:
    """The test metrics under the names of ``summary.json``."""
    names = {"em": "em", "mv": "mv", "pass_at_k": "pass@k", "false_positive": "false_positive"}
    return {**{ours: tested[f"test/{theirs}"] for ours, theirs in names.items()}, "k": samples, "n": problems}


def summarise(
    sft: dict[str, float | int],
    trained: dict[str, float | int],
    iterations: Sequence[dict[str, Any]],
    stopped_by: str,
    seed: int,
) -> dict[str, Any]:
    """The contents of ``summary.json``."""
    return {
        "sft": sft,
        "trained": trained,
        "iterations": list(iterations),
        "stopped_by": stopped_by,
        "seed": seed,
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
    }


def print_report(summary: dict[str, Any], warm_start_seconds: float, console: Console) -> None:
    """The table: warm start against trained policy, and where the time went."""
    sft, trained, iterations = summary["sft"], summary["trained"], summary["iterations"]
    table = Table(title=f"{trained['n']} test problems, {trained['k']} answers each", title_justify="left")
    for heading in ("", "warm start", "trained"):
        table.add_column(heading, justify="left" if not heading else "right")
    k = trained["k"]
    rows = {"em": "EM", "mv": f"MV@{k}", "pass_at_k": f"Pass@{k}", "false_positive": "right by unfaithful reasoning"}
    for key, label in rows.items():
        table.add_row(label, f"{sft[key]:.3f}", f"{trained[key]:.3f}")
    console.print(table)
    phases = {phase: sum(one["seconds"][phase] for one in iterations) for phase in ("rollout", "scoring", "update")}
    spent = ", ".join(
        f"{phase} {seconds:.0f} s" for phase, seconds in {"warm start": warm_start_seconds, **phases}.items()
    )
    kept = sum(one["kept_fraction"] for one in iterations) / max(1, len(iterations))
    console.print(f"Time: {spent}.")
    console.print(
        f"{len(iterations)} iterations, on average {kept:.0%} of the episodes kept; "
        f"stopped by: {summary['stopped_by']}."
    )
