"""How a task's answers are written: one place where they are read, compared, rewarded and judged."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ippo.rewards.answers import final_answer, same_number
from ippo.rewards.boxes import boxed_answer
from ippo.rewards.choices import chosen
from ippo.rewards.latex import latex_equal
from ippo.rewards.steps import classify_solution

Judged = tuple[str | None, bool | None]
"""What was read from a response, and whether it is right; None where that cannot be told."""


@dataclass(frozen=True)
class AnswerFormat:
    """Reads the final answer of a text and compares it with the gold one.

    Args:
        read: the answer in a response, or None.
        compare: ``compare(gold, answer, *extras)``: whether they are equal, or None if that cannot be told.
        extras: columns whose values ``compare`` takes as well.
        reads: columns whose values ``read`` takes as well; None from rows that have no such column.

    Example:
        >>> NUMBERS.reward(["2+2?", "2+2?"], ["#### 4.0", "4"], answer=["4", "4"])
        [1.0, 0.0]
        >>> LATEX.check(["x?"], [r"\\boxed{0.5}"], answer=[r"\\frac{1}{2}"])
        {'answer': ['0.5'], 'correct': [True], 'chain': ['unverifiable']}
    """

    read: Callable[..., str | None]
    compare: Callable[..., bool | None]
    extras: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    _last: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def reward(self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]) -> list[float]:
        """1.0 for each completion whose answer is right, else 0.0, also where that cannot be told."""
        return [float(verdict is True) for _, verdict in self._judged(completions, columns)]

    def check(self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]) -> dict[str, list]:
        """The truth about each completion, see :data:`ippo.data.Check`."""
        judged = self._judged(completions, columns)
        return {
            "answer": [answer for answer, _ in judged],
            "correct": [verdict is True for _, verdict in judged],
            "chain": [
                classify_solution(text, verdict, answer)
                for text, (answer, verdict) in zip(completions, judged, strict=True)
            ],
        }

    def equal(self, answer: str, other: str, /, **columns: Any) -> bool:
        """Whether two answers to one row are one vote, within the row's tolerance if it has one; what cannot be told
        is two."""
        more = [columns[name] for name in self.extras] if columns else []
        return self.compare(answer, other, *more) is True

    def _judged(self, completions: Sequence[str], columns: dict[str, Sequence[Any]]) -> list[Judged]:
        """Each answer and whether it is right. Whatever is asked twice is found out once: the check and the reward of a
        rollout, and equal answers within it, agree even where a comparison runs out of time."""
        used = {name: list(columns[name]) for name in ("answer", *self.extras, *self.reads) if name in columns}
        question = (list(completions), used)
        if self._last.get("question") != question:
            self._last.update(question=question, judged=self._judge(completions, columns))
        return self._last["judged"]

    def _judge(self, completions: Sequence[str], columns: dict[str, Sequence[Any]]) -> list[Judged]:
        known = [columns.get(name, [None] * len(completions)) for name in self.reads]
        answers = [self.read(text, *more) for text, *more in zip(completions, *known, strict=True)]
        found: dict[str, bool | None] = {}
        judged: list[Judged] = []
        extras = [columns[name] for name in self.extras]
        for gold, answer, *more in zip(columns["answer"], answers, *extras, strict=True):
            case = repr((gold, answer, more))
            if case not in found:
                found[case] = False if answer is None else self.compare(gold, answer, *more)
            judged.append((answer, found[case]))
        return judged


NUMBERS = AnswerFormat(final_answer, same_number)
"""A number after ``####``."""

LATEX = AnswerFormat(boxed_answer, latex_equal)
"""Mathematics in ``\\boxed{}``."""

MEASURES = AnswerFormat(boxed_answer, latex_equal, ("tolerance",))
"""Mathematics in ``\\boxed{}``; numbers may differ by the column ``tolerance``."""

CHOICES = AnswerFormat(chosen, operator.eq, reads=("options",))
"""A letter after ``####``, of those that the column ``options`` has texts for."""
