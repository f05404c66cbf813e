r"""LaTeX answers are compared by their meaning, within a time limit that always holds.

An answer is taken apart first: numbers are compared as exact rationals, words as words, lists and brackets part by
part. What is left, an expression at a time, is for ``math_verify``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from ippo.rewards.boxes import LONGEST
from ippo.rewards.latex_judge import Budget, TimeUpError, judge
from ippo.rewards.notation import bracketed, is_text, listed, plain_text, split, split_unit, tidy, without_text
from ippo.rewards.numbers import leading_number

_MOST_PARTS = 32  # of a list; a longer one is not compared
_BASED = re.compile(r"([0-9A-Za-z]+)\s*_\s*(?:\{\s*([0-9]+)\s*\}|([0-9]))")
_PER_CENT = {("%", ""): Fraction(100), ("", "%"): Fraction(1, 100)}
_ARGUMENTS = re.compile(r"_(?:\{[^{}]*\}|[0-9A-Za-z])|(?<=[A-Za-z}'])\([A-Za-z0-9, ]*\)|^\([A-Za-z, ]*\)$")
_NAME = re.compile(r"(?:\\?[A-Za-z]+|[{}|'\s])*")
_NO_EXPRESSION = re.compile(r"[0-9]\s*:\s*[0-9]|(?<![_^0-9])[0-9]+\s+[0-9]|[0-9]\s*_|\\approx|\\sim|[^\x00-\x7f]")


def latex_equal(gold: str, answer: str, tolerance: float = 0.0, limit: float = 3.0) -> bool | None:
    r"""Whether two LaTeX answers mean the same. Exactly: ``0.333`` is not a third.

    A unit counts only where both have one. Of ``50\%``, both 50 and 0.5 are taken for the number where the other side
    has no percent sign. ``x = 5`` is 5. Lists and sets have no order, points and intervals have one.

    ``math_verify`` runs in a process of its own that is ended when the time is up. It has a limit too, but that rests
    on signals, which work in a program's main thread only and wait while a large power is being computed.

    Args:
        gold, answer: without dollar signs around them; with them is fine too.
        tolerance: numbers may differ by this much, also in lists, in brackets and behind ``x =``.
        limit: seconds of a processor until the comparison is given up; ten times as many on the clock.

    Returns:
        None if it could not be told: one of them is no mathematics, or the time was up.

    Example:
        >>> latex_equal(r"\frac{1}{2}", "0.5"), latex_equal("x+1", "1+x"), latex_equal("3", "4")
        (True, True, False)
        >>> latex_equal(r"(1.5, 2\pi)", r"x = (1.6, 6.3)", tolerance=0.1)
        True
        >>> latex_equal("5", "9^{9^{9^9}}", limit=0.5) is None
        True
    """
    if max(len(gold), len(answer)) > LONGEST:
        return None
    gold, answer = tidy(gold), tidy(answer)
    if not gold or not answer:
        return None
    try:
        return _equal(gold, answer, _Terms(tolerance, Budget(limit)))
    except TimeUpError:
        return None


class _Terms(NamedTuple):
    """On which terms two answers are compared."""

    tolerance: float
    budget: Budget


def _equal(gold: str, answer: str, terms: _Terms) -> bool | None:
    """Compare two tidy answers, or parts of them: whole if they are numbers or words, else part by part."""
    terms.budget.step()
    if gold == answer:
        return True
    if is_text(gold) or is_text(answer):
        if plain_text(gold) == plain_text(answer):
            return True
        if is_text(gold) and is_text(answer):
            return False
    gold, answer = without_text(gold), without_text(answer)
    if _BASED.fullmatch(gold) or _BASED.fullmatch(answer):
        return _digits_and_base(gold) == _digits_and_base(answer)
    lists = _list(gold), _list(answer)
    if max(map(len, lists)) > 1:
        return _in_any_order(_members(lists[0]), _members(lists[1]), terms)
    sides = split(gold, "=", r"\in"), split(answer, "=", r"\in")
    if max(map(len, sides)) > 1:
        return _equations(sides[0], sides[1], terms)
    if bracketed(gold) or bracketed(answer):
        return _brackets(gold, answer, terms)
    unions = split(gold, r"\cup"), split(answer, r"\cup")
    if min(map(len, unions)) > 1 and _in_any_order(unions[0], unions[1], terms):
        return True
    return _measures(gold, answer, terms)


def _list(text: str) -> list[str]:
    """What ``text`` lists; 1,250 is a number, also behind ``x =``."""
    *names, last = split(text, "=")
    is_number = all(map(_is_name, names)) and _value(split_unit(last)[0]) is not None
    return [text] if is_number else listed(text)


def _digits_and_base(text: str) -> tuple[str, int] | None:
    found = _BASED.fullmatch(text)
    return (found[1].upper().lstrip("0"), int(found[2] or found[3])) if found else None


def _value(text: str) -> Fraction | None:
    found = leading_number(text)
    return found[0] if found and not found[1].strip() else None


def _measures(gold: str, answer: str, terms: _Terms) -> bool | None:
    """Compare two numbers or expressions with their units."""
    (left, unit), (right, other) = split_unit(gold), split_unit(answer)
    if unit and other and unit != other:
        return None  # metres or miles: nobody converts them here
    number, its_answer = _value(left), _value(right)
    if number is not None and its_answer is not None:
        allowed = Fraction(str(terms.tolerance))  # as it is written, so that 3.0 and 3.1 are within 0.1
        as_shares = _PER_CENT.get((unit, other), Fraction(1))
        return min(abs(number - its_answer * scale) for scale in (1, as_shares)) <= allowed
    if _NO_EXPRESSION.search(left) or _NO_EXPRESSION.search(right):
        return None
    return judge().compare(left, right, terms.tolerance, terms.budget)


def _members(parts: list[str]) -> list[str]:
    """The parts, or those of the one set that they are."""
    found = bracketed(parts[0]) if len(parts) == 1 else None
    return found.parts if found and found.opening == r"\{" else parts


def _brackets(gold: str, answer: str, terms: _Terms) -> bool | None:
    """Compare points and intervals part by part, sets in any order, and either with what has no brackets."""
    left, right = bracketed(gold), bracketed(answer)
    if r"\{" in (left and left.opening, right and right.opening):
        return _in_any_order(_members([gold]), _members([answer]), terms)
    if left is None or right is None:
        return _measures(gold, answer, terms)
    if (left.opening, left.closing) != (right.opening, right.closing) or len(left.parts) != len(right.parts):
        return False
    verdicts = {_equal(*pair, terms) for pair in zip(left.parts, right.parts, strict=True)}
    return False if False in verdicts else None if None in verdicts else True


def _equations(gold: list[str], answer: list[str], terms: _Terms) -> bool | None:
    """Compare ``x = 5`` with ``5`` by its last side, and two equations as they are unless they name the same."""
    if min(len(gold), len(answer)) > 1:
        same_name = _is_name(gold[0]) and gold[0].replace(" ", "") == answer[0].replace(" ", "")
        return _equal(gold[-1], answer[-1], terms) if same_name else _measures("=".join(gold), "=".join(answer), terms)
    sides, value = (gold, answer[0]) if len(gold) > 1 else (answer, gold[0])
    if _is_name(sides[-1]) and not _is_name(sides[0]):
        sides = sides[::-1]
    says_a_value = _is_name(sides[0]) or _equal(sides[0], sides[-1], terms)
    return _equal(sides[-1], value, terms) if says_a_value else False


def _is_name(text: str) -> bool:
    """Whether a side of an equation is a name, as ``x``, ``f(2)`` and ``(x, y)`` are, and no expression."""
    return bool(text) and _NAME.fullmatch(_ARGUMENTS.sub("", text)) is not None


def _in_any_order(golds: Sequence[str], answers: Sequence[str], terms: _Terms) -> bool | None:
    """Whether each part of one list has a partner of its own in the other."""
    if len(golds) != len(answers):
        return False
    if len(golds) > _MOST_PARTS:
        return None
    verdicts = [[_equal(gold, answer, terms) for answer in answers] for gold in golds]
    partner: dict[int, int] = {}

    def settle(gold: int, seen: set[int]) -> bool:
        for place, verdict in enumerate(verdicts[gold]):
            if verdict and place not in seen:
                seen.add(place)
                if place not in partner or settle(partner[place], seen):
                    partner[place] = gold
                    return True
        return False

    if all(settle(gold, set()) for gold in range(len(golds))):
        return True
    return None if any(None in row for row in verdicts) else False
