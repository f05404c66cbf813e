"""Answers to the same problems, before and now, as a page to read."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

Answer = dict[str, Any]
"""``prompt``, ``response``, ``correct`` and ``finished`` of one."""


def first_answers(table: Mapping[str, Sequence[Any]], samples: int, count: int) -> list[Answer]:
    """The first answer to each of the first ``count`` problems of a batch.

    Args:
        table: the columns of judged answers, ``samples`` to a problem in a row.
        samples: answers to each problem.
        count: how many at most.

    Example:
        >>> table = {name: [1, 2, 3, 4] for name in ("prompt", "response", "correct", "finished")}
        >>> [answer["response"] for answer in first_answers(table, samples=2, count=9)]
        [1, 3]
    """
    names = ("prompt", "response", "correct", "finished")
    rows = range(0, len(table["response"]), samples)[:count]
    return [{name: table[name][row] for name in names} for row in rows]


def verdict(answer: Mapping[str, Any]) -> str:
    """In a word.

    Example:
        >>> verdict({"correct": False, "finished": True})
        'wrong'
    """
    return "right" if answer["correct"] else "wrong" if answer["finished"] else "unfinished"


def page(before: Sequence[Answer], now: Sequence[Answer], iterations: int) -> str:
    """Markdown. What a model wrote is data: it is escaped, and stands in code blocks.

    Args:
        before: answers of the first evaluation.
        now: to the same problems.
        iterations: that lie between them; 0 where they are the same.
    """
    parts = []
    for number, (first, last) in enumerate(zip(before, now, strict=False), start=1):
        parts += [f"#### Problem {number}", quoted(first["prompt"]), f"**at first: {verdict(first)}**"]
        parts += [quoted(first["response"])]
        if iterations:
            parts += [f"**after {iterations} more iterations: {verdict(last)}**", quoted(last["response"])]
    return "\n\n".join(parts)


def quoted(text: str) -> str:
    """A text as a code block, escaped; an empty one is told.

    Example:
        >>> quoted("<b> 1")
        '    &lt;b&gt; 1'
    """
    return "\n".join(f"    {line}" for line in html.escape(text, quote=False).splitlines() or ["(nothing)"])
