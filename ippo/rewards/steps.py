"""Step checking: is a right answer reached by the right reasoning?

A chain of thought is read line by line as ``a+b=c`` steps (parsed, never evaluated) and aligned with the true steps of
its problem. What the alignment leaves over names the defect, so every chain falls into exactly one class.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

from ippo.rewards.answers import NUMBER, is_correct

ChainClass = Literal["wrong", "faithful", "wrong_step", "nonsense", "shortcut"]
CHAIN_CLASSES: tuple[ChainClass, ...] = ("wrong", "faithful", "wrong_step", "nonsense", "shortcut")

_STEP = re.compile(rf"\s*({NUMBER})\s*([-+*/])\s*({NUMBER})\s*=\s*({NUMBER})\s*")
_LONGEST = 128  # characters of a step; what is longer is none, and is not searched
_LONGEST_CHAIN = 2**16  # characters that are read; a megabyte of line breaks would take longer to split than to sample
_MAX_LINES = 64  # a longer chain is cut: the alignment below is quadratic in the number of lines


class Step(NamedTuple):
    """One equation ``left operator right = result``, as written: it need not hold."""

    left: Fraction
    operator: str
    right: Fraction
    result: Fraction


def parse_step(line: str) -> Step | None:
    """Read ``a+b=c`` (also ``-``, ``*``, ``/``), or None. Operands of ``+`` and ``*`` are put in order, as they
    commute.

    Example:
        >>> parse_step("7 + 5 = 12") == parse_step("5+7=12")
        True
        >>> parse_step("7 plus 5") is None
        True
    """
    text = line.strip()
    found = _STEP.fullmatch(text) if len(text) <= _LONGEST else None
    if found is None:
        return None
    left, right, result = Fraction(found[1]), Fraction(found[3]), Fraction(found[4])
    if found[2] in "+*":
        left, right = min(left, right), max(left, right)
    return Step(left, found[2], right, result)


def classify_chain(response: str, steps: Sequence[str], answer: str) -> ChainClass:
    """Class a response against the true steps of its problem.

    ``wrong``: the final answer is not right. ``faithful``: right, by exactly the true steps in their order.
    Otherwise it is a *false positive*: ``shortcut`` when true steps are missing, ``nonsense`` when lines were added
    that are no true step, ``wrong_step`` when both happened, that is, a true step was replaced by another line.

    Args:
        response: the text that the model wrote.
        steps: the problem's true steps, e.g. ``["7+5=12", "12-3=9"]``.
        answer: the true final answer.

    Example:
        >>> steps = ["7+5=12", "12-3=9"]
        >>> classify_chain("7+5=12\\n12-3=9\\n#### 9", steps, "9")
        'faithful'
        >>> classify_chain("7+5=13\\n12-3=9\\n#### 9", steps, "9")
        'wrong_step'
        >>> classify_chain("7+5=12\\n4*6=25\\n12-3=9\\n#### 9", steps, "9")
        'nonsense'
        >>> classify_chain("12-3=9\\n#### 9", steps, "9"), classify_chain("#### 8", steps, "9")
        ('shortcut', 'wrong')
    """
    if not is_correct(response, answer):
        return "wrong"
    chain = response.rpartition("####")[0]
    if len(chain) > _LONGEST_CHAIN:
        chain = chain[:_LONGEST_CHAIN].rpartition("\n")[0]  # whole lines: a number that is cut is another number
    lines = [line for line in chain.splitlines() if line.strip()][:_MAX_LINES]
    matched = _common_steps([parse_step(line) for line in lines], [parse_step(step) for step in steps])
    missing, added = len(steps) > matched, len(lines) > matched
    if missing and added:
        return "wrong_step"
    if missing:
        return "shortcut"
    return "nonsense" if added else "faithful"


def _common_steps(written: Sequence[Step | None], true: Sequence[Step | None]) -> int:
    """Length of the longest common subsequence; a line that is no step (None) matches nothing."""
    lengths = [0] * (len(true) + 1)
    for step in written:
        diagonal = 0
        for column, truth in enumerate(true, start=1):
            above = lengths[column]
            lengths[column] = diagonal + 1 if step is not None and step == truth else max(above, lengths[column - 1])
            diagonal = above
    return lengths[-1]
