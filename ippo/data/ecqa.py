"""ECQA: CommonsenseQA with human explanations (Aggarwal et al. 2021, ACL).

Hub: ``tasksource/ecqa``; columns ``q_text``, ``q_op1`` to ``q_op5``, ``q_ans`` (the text of the right option) and
``taskB`` (a free-flowing explanation, the gold solution here), besides ``q_no``, ``q_concept``, ``taskA_pos`` and
``taskA_neg``; splits train, validation and test (the hub's data card).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ippo.data.source import Source
from ippo.data.splits import SplitOptions, task_from
from ippo.data.task import Row, Task
from ippo.data.writing import problem_prompt
from ippo.rewards import CHOICES

_OPTIONS = tuple(f"q_op{place}" for place in range(1, 6))
SOURCE = Source("tasksource/ecqa", columns=("q_text", *_OPTIONS, "q_ans", "taskB"))


def ecqa_task(path: str | Path | None = None, options: SplitOptions = SplitOptions()) -> Task:
    """ECQA from the hub, or from a local copy in its schema."""
    return task_from("ecqa", SOURCE, to_row, CHOICES, path, options)


def to_row(raw: dict[str, Any]) -> Row | None:
    """A row of the task.

    Example:
        >>> options = {f"q_op{place}": text for place, text in enumerate(["sky", "bed", "sea", "car", "tree"], 1)}
        >>> row = to_row({"q_text": "Where to sleep?", **options, "q_ans": "bed", "taskB": "Beds are for sleeping."})
        >>> row["answer"], row["solution"]
        ('B', ' Beds are for sleeping.\\n#### B')
    """
    options = [str(raw[name]).strip() for name in _OPTIONS]
    right, explanation = str(raw["q_ans"]).strip(), raw["taskB"]
    if not raw["q_text"] or not explanation or right not in options:
        return None
    letter = "ABCDE"[options.index(right)]
    choices = "\n".join(f"({sign}) {text}" for sign, text in zip("ABCDE", options, strict=True))
    question = f"{raw['q_text']}\n{choices}"
    return {
        "prompt": problem_prompt(question, "COMMONSENSE"),
        "solution": f" {explanation}\n#### {letter}",
        "answer": letter,
        "options": options,
    }
