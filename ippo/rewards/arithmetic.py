"""Step checking on real solutions: are the sums that a text writes down true?

Reads GSM8K's ``<<48/2=24>>`` and plain ``48 / 2 = 24`` anywhere in running text, with the usual ways to write them
(``$1,200``, ``20%``, ``3 x 4``, ``\\frac{1}{2}``). Equations are parsed into exact fractions, never evaluated as code.
What is not plainly a sum of numbers is left alone: a checker that guesses would call sound reasoning unfaithful.
"""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import islice, pairwise
from typing import NamedTuple

_MOST = 512  # signs of equality that are looked at
_LONGEST = 6_000  # characters that are read; the rest of an endless response is not
_NUMBER = r"[0-9]{1,18}(?:\.[0-9]{1,18})?|\.[0-9]{1,18}"
_TOKEN = re.compile(rf"\s*({_NUMBER}|[-+*/()%])")
_PIECES = re.compile(r"<<|>>|\n|[.,;:!?](?=\s|$)")  # no equation reaches over these
_SIGNED = frozenset("0123456789.+-*/()% \t")
# After these words, or hard upon a letter, a number is part of something larger that was not written in signs.
_PART_OF_MORE = re.compile(
    r"(?:[A-Za-z_\\^{}]|[0-9][,:]|\b(?:of|times|plus|minus|by|over|twice|half|double|triple|than|x)\s+)$", re.IGNORECASE
)
_GOES_ON = re.compile(r"[A-Za-z_^\\{]|[,:][0-9]")
_OPERATION = re.compile(r"[0-9)%]\s*[-+*/(]")
_SIGNS = (  # how sums are written, in print and in Markdown; the order matters
    (re.compile(r"^[ \t]*(?:[-*+•]|[0-9]{1,2}[.)])\s+", re.MULTILINE), ""),
    (re.compile(r"(?<![0-9)])\*\*|\*\*(?![0-9(])|&"), ""),
    (re.compile(r"\\boxed\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\\\"), "\n"),
    (re.compile(r"\\[()\[\]]"), " "),
    (re.compile(r"\\[dt]?frac\s*\{([0-9.]{1,18})\}\s*\{([0-9.]{1,18})\}"), r"((\1)/(\2))"),
    (re.compile(r"\\times|\\cdot|×|·|∙"), "*"),
    (re.compile(r"(?<=[0-9)%])\s*[xX]\s*(?=[0-9(.$£€])"), "*"),
    (re.compile(r"\\div|÷"), "/"),
    (re.compile(r"−|–"), "-"),
    (re.compile(r"\\(?:left|right)(?=[()])|\\[,;! ]|\\?[$£€]"), ""),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"(?<=[0-9])(?:,|\{,\})(?=[0-9]{3}(?![0-9]))"), ""),
)


class Equation(NamedTuple):
    """One written equation between numbers.

    Args:
        text: as it was read.
        value: what its left side comes to.
        written: what its right side says.
        holds: whether the two agree, to the decimals that are written.
    """

    text: str
    value: Fraction
    written: Fraction
    holds: bool


def equations(text: str) -> list[Equation]:
    """Every sum with a result that ``text`` writes down, in order; ``a=b=c`` is two of them.

    Decimals stand for what they round or are cut to: ``10/3=3.33`` holds, ``10/3=3`` does not. A percentage is a
    hundredth, and as a result also its number: ``0.2*100=20%`` holds. ``100-20%``, which may mean two things, is left
    alone, as is ``12/2/5``.

    Example:
        >>> [(one.text, one.holds) for one in equations("He sold 48/2 = <<48/2=24>>24 clips, so 48 + 24 = 73.")]
        [('48/2=24', True), ('48+24=73', False)]
        >>> equations("x + 2 = 5, half of 10 + 4 = 9, 3 apples + 2 pears = 5 fruits")  # not plainly numbers
        []
    """
    pieces = _PIECES.split(_in_signs(text[:_LONGEST]))
    sides = (pair for piece in pieces if "=" in piece for pair in pairwise(piece.split("=")))
    return [found for left, right in islice(sides, _MOST) if (found := _between(left, right)) is not None]


def sound(text: str) -> bool:
    """Whether no equation in ``text`` is false."""
    return all(equation.holds for equation in equations(text))


def number(text: str) -> Fraction | None:
    """The number that ``text`` is, signs of money and thousands aside; None if it is anything else.

    Example:
        >>> number("$1,250"), number("-0.5"), number("\\\\frac{1}{2}"), number("x")
        (Fraction(1250, 1), Fraction(-1, 2), Fraction(1, 2), None)
    """
    return _value(_in_signs(text[:128]))


def _in_signs(text: str) -> str:
    for pattern, sign in _SIGNS:
        text = pattern.sub(sign, text)
    return text


def _between(left: str, right: str) -> Equation | None:
    """The equation that two sides of a sign of equality make, where both are plainly numbers."""
    sum_, result = _end_of(left), _start_of(right)
    value, written = _value(sum_), _value(result)
    if value is None or written is None or not _OPERATION.search(sum_) or _mixed(sum_):
        return None
    return Equation(f"{sum_}={result}".replace(" ", ""), value, written, _agree(sum_, value, result, written))


def _end_of(side: str) -> str:
    """The signs and numbers that ``side`` ends with; nothing if they go on with what stands before them."""
    start = len(side)
    while start and side[start - 1] in _SIGNED:
        start -= 1
    signs = side[start:].lstrip()
    before = side[: len(side) - len(signs)]
    goes_on = _PART_OF_MORE.search(before[-16:]) or (signs[:1] in tuple("+-*/)%") and before.strip())
    return "" if goes_on else signs.strip()


def _start_of(side: str) -> str:
    """The signs and numbers that ``side`` starts with, less a unit (``17/hour``); nothing if they go on as ``3x``."""
    stop = next((place for place, sign in enumerate(side) if sign not in _SIGNED), len(side))
    signs, rest = side[:stop], side[stop:]
    if signs.endswith("/"):
        signs = signs[:-1]
    elif signs[-1:].isdigit() and _GOES_ON.match(rest):
        return ""
    return signs.strip().rstrip("( ")


def _mixed(sum_: str) -> bool:
    """Whether percentages and other numbers are added up: ``100 - 20%`` may mean 99.8 or 80."""
    return bool(re.search("[-+]", sum_)) and sum_.count("%") not in (0, len(re.findall(_NUMBER, sum_)))


def _agree(sum_: str, value: Fraction, result: str, written: Fraction) -> bool:
    places = [len(found) for found in re.findall(r"\.([0-9]+)", result)]
    allowed = Fraction(1, 10 ** max(places)) if places else Fraction(0)
    if re.search(r"\.[0-9]{6}", sum_):  # 48 * 0.3333333333333333 = 16: a sum of decimals that were cut themselves
        allowed = max(allowed, abs(value) / 10**6)
    as_written = (written, written * 100) if "%" in result else (written,)
    return any(value == one or abs(value - one) < allowed for one in as_written)


def _value(text: str) -> Fraction | None:
    """The value of a sum of numbers, or None for what is none (or divides by zero)."""
    text = text.strip()
    tokens: list[str] = []
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None or len(tokens) > 64:
            return None
        tokens.append(match[1])
        place = match.end()
    try:
        value, rest = _sum(tokens)
    except (ValueError, ZeroDivisionError, RecursionError):
        return None
    return value if not rest else None


def _sum(tokens: list[str]) -> tuple[Fraction, list[str]]:
    value, tokens = _product(tokens)
    while tokens and tokens[0] in "+-":
        other, rest = _product(tokens[1:])
        value, tokens = (value + other if tokens[0] == "+" else value - other), rest
    return value, tokens


def _product(tokens: list[str]) -> tuple[Fraction, list[str]]:
    value, tokens = _factor(tokens)
    before = ""
    while tokens and tokens[0] in "*/(":
        sign = tokens[0]
        other, tokens = _factor(tokens if sign == "(" else tokens[1:])
        if before == sign == "/":
            raise ValueError("12/2/5 may mean 12/(2/5): people write both")
        value, before = (value / other if sign == "/" else value * other), sign
    return value, tokens


def _factor(tokens: list[str]) -> tuple[Fraction, list[str]]:
    """A number or a sum in brackets, with its sign before it and its per cent sign after it.

    Raises:
        ValueError: if there is neither.
    """
    if not tokens:
        raise ValueError("a number is missing")
    first, rest = tokens[0], tokens[1:]
    if first in "+-":
        value, rest = _factor(rest)
        return (-value if first == "-" else value), rest
    if first == "(":
        value, rest = _sum(rest)
        if rest[:1] != [")"]:
            raise ValueError("a bracket is not closed")
        rest = rest[1:]
    elif first[-1].isdigit():
        value = Fraction(first)
    else:
        raise ValueError(f"{first} is no number")
    return (value / 100, rest[1:]) if rest[:1] == ["%"] else (value, rest)
