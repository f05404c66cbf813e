"""CollegeMath: exercises from college textbooks, of MathScale's MWPBench (Tang et al. 2024, arXiv 2403.02884).

Hub: ``di-zhang-fdu/College_Math_Test``; columns ``question`` and ``answer`` (LaTeX), besides ``data_source``,
``question_number``, ``license`` and ``data_topic``; a test split alone, which is divided. It has no worked solutions:
a demonstration says no more than the answer. A local copy may have a column ``solution``, which is then used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ippo.data.source import Source
from ippo.data.splits import SplitOptions, task_from
from ippo.data.task import Row, Task
from ippo.data.writing import in_box, problem_prompt
from ippo.rewards import LATEX

SOURCE = Source("di-zhang-fdu/College_Math_Test", columns=("question", "answer"), optional=("solution",))


def collegemath_task(path: str | Path | None = None, options: SplitOptions = SplitOptions()) -> Task:
    """CollegeMath from the hub, or from a local copy in its schema."""
    return task_from("collegemath", SOURCE, to_row, LATEX, path, options)


def to_row(raw: dict[str, Any]) -> Row | None:
    """A row of the task.

    Example:
        >>> to_row({"question": "Simplify $x+x$.", "answer": "$2 x$"})["solution"]
        ' The answer is $\\\\boxed{2 x}$.'
    """
    question, answer = raw["question"], str(raw["answer"] or "").strip().strip("$").strip()
    if not question or not answer:
        return None
    solution = in_box(raw.get("solution") or "", answer)
    return {"prompt": problem_prompt(question), "solution": solution, "answer": answer}
