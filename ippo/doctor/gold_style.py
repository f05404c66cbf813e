"""Whether the gold solutions are written in a way that the policy knows."""

from __future__ import annotations

from ippo.doctor.finding import Finding, grade, report
from ippo.ppo.gold_style import FOREIGN, REMEDY


def gold_style(gold_loss: float, own: float) -> Finding:
    """The gold solutions surprise the policy about as much as its own answers do.

    Args:
        gold_loss: nats a token of the gold solutions.
        own: nats a token of its own answers.

    Example:
        >>> gold_style(8.8, 0.3).state, gold_style(0.1, 0.3).state
        ('wrong', 'ok')
    """
    found = f"{gold_loss:.2f} nats a token, its own answers {own:.2f}"
    return report("gold style", grade(gold_loss - own, warning=FOREIGN / 2, wrong=FOREIGN), found, REMEDY)
