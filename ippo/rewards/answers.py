"""Final answers: find the one after ``####`` and compare it as a number, never as text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

# Digits are bounded and ASCII only: what a model writes is data, and may be a megabyte of nines.
NUMBER = r"[+-]?[0-9]{1,18}(?:\.[0-9]{1,18})?"
_ANSWER = re.compile(rf"\s*\$?({NUMBER})(?!\.?\d)")
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")


def final_answer(response: str) -> str | None:
    """The number after the last ``####`` in canonical form, or None where there is none.

    Equal numbers give equal strings, so that majority votes can count them.

    Example:
        >>> final_answer("7+5=12\\n#### 12"), final_answer("#### 36.0"), final_answer("#### $1,250")
        ('12', '36', '1250')
        >>> final_answer("#### 3\\n#### 4"), final_answer("the answer is 4")
        ('4', None)
    """
    _, mark, tail = response.rpartition("####")
    if not mark:
        return None
    found = _ANSWER.match(_THOUSANDS.sub("", tail.lstrip()[:64]))
    return str(Fraction(found[1])) if found else None


def is_correct(response: str, answer: str) -> bool:
    """Whether the response's final answer equals ``answer`` (a number, or a gold solution that ends in one).

    Example:
        >>> is_correct("5+4=9\\n#### 9", "9"), is_correct("#### 9.0", "#### 9"), is_correct("#### 8", "9")
        (True, True, False)
    """
    found = final_answer(response)
    return found is not None and same_number(answer if "####" in answer else f"#### {answer}", found)


def same_number(gold: str, answer: str) -> bool:
    """Whether two answers are the same number; text that holds none is equal to nothing.

    Example:
        >>> same_number("36", "36.0"), same_number("#### 1,250", "1250"), same_number("many", "many")
        (True, True, False)
    """
    numbers = [final_answer(text if "####" in text else f"#### {text}") for text in (gold, answer)]
    return numbers[0] is not None and numbers[0] == numbers[1]


def numeric_reward(
    prompts: Sequence[str], completions: Sequence[str], *, answer: Sequence[str], **_: object
) -> list[float]:
    """1.0 for each completion whose final answer is right, else 0.0 (outcome reward, arXiv 2604.01597 section 3).

    Example:
        >>> numeric_reward(["2+2?", "2+2?"], ["#### 4", "#### 5"], answer=["4", "4"])
        [1.0, 0.0]
    """
    return [float(is_correct(text, gold)) for text, gold in zip(completions, answer, strict=True)]
