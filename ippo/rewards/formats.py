"""How a task's answers are written: one place where they are read, compared, rewarded and judged."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ippo.rewards.answers import final_answer, same_number
from ippo.rewards.boxes import boxed_answer
from ippo.rewards.choices import chosen
from ippo.rewards.latex import latex_equal
from ippo.rewards.steps import classify_solution


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

    def reward(self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]) -> list[float]:
        """1.0 for each completion whose answer is right, else 0.0, also where that cannot be told."""
        return [float(verdict is True) for verdict in self._verdicts(completions, columns)]

    def check(self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]) -> dict[str, list]:
        """The truth about each completion, see :data:`ippo.data.Check`."""
        verdicts, answers = self._verdicts(completions, columns), self._answers(completions, columns)
        each = zip(completions, verdicts, answers, strict=True)
        return {
            "answer": answers,
            "correct": [verdict is True for verdict in verdicts],
            "chain": [classify_solution(text, verdict, answer) for text, verdict, answer in each],
        }

    def equal(self, answer: str, other: str, **columns: Any) -> bool:
        """Whether two answers to one row are one vote, within the row's tolerance if it has one; what cannot be told
        is two."""
        more = [columns[name] for name in self.extras] if columns else []
        return self.compare(answer, other, *more) is True

    def _answers(self, completions: Sequence[str], columns: dict[str, Sequence[Any]]) -> list[str | None]:
        known = [columns.get(name, [None] * len(completions)) for name in self.reads]
        return [self.read(text, *more) for text, *more in zip(completions, *known, strict=True)]

    def _verdicts(self, completions: Sequence[str], columns: dict[str, Sequence[Any]]) -> list[bool | None]:
        extras = zip(*(columns[name] for name in self.extras), strict=True) if self.extras else [()] * len(completions)
        answers = self._answers(completions, columns)
        return [
            False if answer is None else self.compare(gold, answer, *more)
            for gold, answer, more in zip(columns["answer"], answers, extras, strict=True)
        ]


NUMBERS = AnswerFormat(final_answer, same_number)
"""A number after ``####``."""

LATEX = AnswerFormat(boxed_answer, latex_equal)
"""Mathematics in ``\\boxed{}``."""

MEASURES = AnswerFormat(boxed_answer, latex_equal, ("tolerance",))
"""Mathematics in ``\\boxed{}``; numbers may differ by the column ``tolerance``."""

CHOICES = AnswerFormat(chosen, operator.eq, reads=("options",))
"""A letter after ``####``, of those that the column ``options`` has texts for."""
