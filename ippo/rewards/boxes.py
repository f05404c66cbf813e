r"""Boxed answers: find what the last ``\boxed{}`` holds, by its braces."""

from __future__ import annotations

import re

LONGEST = 512  # characters of an answer; a longer one is not read
_EMPTY_BOXES = 16  # at the end of a response that are passed over
_COMMANDS = (r"\boxed", r"\fbox")
_FORMULA_END = re.compile(r"\$|\\[)\]]|[\r\n]")
_BLANK = re.compile(r"(?:\s|~|\\[,;:! ]|\{\s*\})*")


def boxed_answer(response: str) -> str | None:
    r"""What the last ``\boxed{...}`` or ``\fbox{...}`` that is not empty holds; None if there is none that closes.

    Braces within braces count, escaped ones do not. ``\boxed 5`` goes on to the end of its formula.

    Example:
        >>> boxed_answer(r"so $x=\frac{1}{2}$ is $\boxed{\frac{1}{2}}$."), boxed_answer(r"It is $\boxed 5$.")
        ('\\frac{1}{2}', '5')
        >>> boxed_answer("x = 2"), boxed_answer(r"\boxed{2"), boxed_answer(r"\boxed{5}. Now in \boxed{}")
        (None, None, '5')
    """
    end = len(response)
    for _ in range(_EMPTY_BOXES):
        start, command = max((response.rfind(command, 0, end), command) for command in _COMMANDS)
        if start < 0:
            return None
        held = _argument(response[start + len(command) : start + len(command) + LONGEST])
        if held is None or not _BLANK.fullmatch(held):
            return held
        end = start
    return None


def _argument(text: str) -> str | None:
    """What ``text`` starts with, in braces or to the end of the formula; None if it does not end."""
    if text[:1].isalpha():
        return ""  # the command has a longer name, and is no box
    if not text.lstrip().startswith("{"):
        end = _FORMULA_END.search(text)
        return text[: end.start()].strip() if end else text.strip() if len(text) < LONGEST else None
    text = text.lstrip()
    depth = 0
    signs = iter(enumerate(text))
    for place, sign in signs:
        if sign == "\\":
            next(signs, None)
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if depth == 0:
            return text[1:place].strip()
    return None
