"""Final answers: find the one after ``####`` and compare it as a number, never as text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ippo.rewards.numbers import read_number

MARK = "####"
_LONGEST = 512  # characters of a line that are looked at: what has more is no answer


def split_answer(response: str) -> tuple[str, str] | None:
    """What stands before the last ``####``, and the line behind it; None where there is no mark.

    A mark that closes its line, as Markdown's headings may, belongs to the one before it.

    Example:
        >>> split_answer("7+5=12\\n#### 12\\nDone."), split_answer("#### 12 ####"), split_answer("12")
        (('7+5=12\\n', '12'), ('', '12'), None)
    """
    chain, mark, rest = response.rpartition(MARK)
    if not mark:
        return None
    opened, earlier, heading = chain.rpartition(MARK)
    if earlier and heading.strip("# \t") and _line(heading) == heading and not _line(rest).strip("# \t"):
        return opened, heading.strip("# \t")
    return chain, _line(rest.lstrip()).rstrip()


def _line(text: str) -> str:
    """The first line of ``text``, cut at a length that no answer has."""
    return re.split("[\r\n]", text[:_LONGEST], maxsplit=1)[0]


def final_answer(response: str) -> str | None:
    """The number on the line of the last ``####`` in canonical form, or None where there is none.

    Equal numbers give equal strings, so that majority votes can count them, and reading one back gives its number.
    What may be no number, or two, is None: see :func:`ippo.rewards.numbers.read_number`.

    Example:
        >>> final_answer("7+5=12\\n#### 12"), final_answer("#### 36.0"), final_answer("#### $1,250 each")
        ('12', '36', '1250')
        >>> final_answer("#### 3\\n#### 4"), final_answer("#### 2.5 litres"), final_answer("the answer is 4")
        ('4', '5/2', None)
    """
    found = split_answer(response)
    value = read_number(found[1]) if found else None
    return None if value is None else str(value)


def is_correct(response: str, answer: str) -> bool:
    """Whether the response's final answer equals ``answer`` (a number, or a gold solution that ends in one).

    Example:
        >>> is_correct("5+4=9\\n#### 9", "9"), is_correct("#### 9.0", "#### 9"), is_correct("#### 8", "9")
        (True, True, False)
    """
    found = final_answer(response)
    return found is not None and same_number(answer, found)


def same_number(gold: str, answer: str) -> bool:
    """Whether two answers are the same number; text that holds none is equal to nothing.

    Example:
        >>> same_number("36", "36.0"), same_number("#### 1,250", "1250"), same_number("5/2", "2.5")
        (True, True, True)
        >>> same_number("many", "many"), same_number("5/2", "5")
        (False, False)
    """
    first, second = (final_answer(text if MARK in text else f"{MARK} {text}") for text in (gold, answer))
    return first is not None and first == second


def numeric_reward(
    prompts: Sequence[str], completions: Sequence[str], *, answer: Sequence[str], **_: object
) -> list[float]:
    """1.0 for each completion whose final answer is right, else 0.0 (outcome reward, arXiv 2604.01597 section 3).

    Example:
        >>> numeric_reward(["2+2?", "2+2?"], ["#### 4", "#### 5"], answer=["4", "4"])
        [1.0, 0.0]
    """
    return [float(is_correct(text, gold)) for text, gold in zip(completions, answer, strict=True)]
