"""What a check found: one line of the doctor's table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Args:
        check: its name.
        state: ``"ok"``; ``"warning"``, when training works but not as well as it could; ``"wrong"``, when a run would
            be wasted.
        finding: what was measured, with its figure.
        remedy: what to change, naming the option; empty where nothing needs to be.
    """

    check: str
    state: State
    finding: str
    remedy: str = ""


def grade(value: float, warning: float, wrong: float) -> State:
    """``"ok"`` up to ``warning``, ``"wrong"`` above ``wrong``; NaN is wrong.

    Example:
        >>> grade(0.1, warning=0.1, wrong=0.3), grade(0.2, warning=0.1, wrong=0.3), grade(float("nan"), 0.1, 0.3)
        ('ok', 'warning', 'wrong')
    """
    if value <= warning:
        return "ok"
    return "warning" if value <= wrong else "wrong"


def worst(*states: State) -> State:
    """The gravest of several.

    Example:
        >>> worst("ok", "warning")
        'warning'
    """
    gravest: tuple[State, ...] = ("wrong", "warning", "ok")
    return next(state for state in gravest if state in states)


def report(check: str, state: State, finding: str, remedy: str) -> Finding:
    """A finding whose remedy is told only where something is to be mended."""
    return Finding(check, state, finding, remedy if state != "ok" else "")


def healthy(findings: list[Finding]) -> bool:
    """Whether nothing is wrong; warnings do not count."""
    return all(finding.state != "wrong" for finding in findings)
