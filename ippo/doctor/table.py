"""What the doctor says: a line a check, and a verdict."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ippo.doctor.finding import Finding, State

_COLOURS: dict[State, str] = {"ok": "green", "warning": "yellow", "wrong": "bold red"}


def print_table(findings: Sequence[Finding], console: Console) -> None:
    """One line a check: name, finding, state, remedy. Texts stand as they are: what a model or a file wrote is data,
    and no markup."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    table.add_column("check", no_wrap=True)
    table.add_column("")
    table.add_column("finding", ratio=3)
    table.add_column("what to change", ratio=2)
    for one in findings:
        table.add_row(one.check, Text(one.state, _COLOURS[one.state]), Text(one.finding), Text(one.remedy))
    console.print(table)


def verdict(findings: Sequence[Finding]) -> str:
    """The last line.

    Example:
        >>> verdict([Finding("gold set", "wrong", "noise"), Finding("time", "ok", "1 s")])
        '1 wrong (gold set): change that before you train.'
        >>> verdict([Finding("reward", "warning", "pays 75%"), Finding("time", "ok", "1 s")])
        'Healthy, with 1 warning (reward).'
    """
    wrong, warned = ([one.check for one in findings if one.state == state] for state in ("wrong", "warning"))
    if wrong:
        return f"{len(wrong)} wrong ({', '.join(wrong)}): change that before you train."
    if warned:
        return f"Healthy, with {len(warned)} warning{'s' if len(warned) > 1 else ''} ({', '.join(warned)})."
    return "Healthy."
