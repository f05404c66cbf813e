"""MATH: competition problems with LaTeX solutions (Hendrycks et al. 2021, arXiv 2103.03874).

Hub: ``EleutherAI/hendrycks_math``, one configuration a subject; columns ``problem``, ``level``, ``type`` and
``solution``, splits train and test (the hub's data card). The answer stands in the solution's last ``\\boxed{}``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ippo.data.source import Source
from ippo.data.splits import SplitOptions, task_from
from ippo.data.task import Row, Task
from ippo.data.writing import problem_prompt
from ippo.rewards import LATEX, boxed_answer

SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
SOURCE = Source("EleutherAI/hendrycks_math", columns=("problem", "solution"), configs=SUBJECTS)


def math_task(path: str | Path | None = None, options: SplitOptions = SplitOptions()) -> Task:
    """MATH, all subjects, from the hub or from a local copy in its schema."""
    return task_from("math", SOURCE, to_row, LATEX, path, options)


def to_row(raw: dict[str, Any]) -> Row | None:
    """A row of the task.

    Example:
        >>> to_row({"problem": "Half of $1$?", "solution": r"It is $\\boxed{\\frac{1}{2}}$."})["answer"]
        '\\\\frac{1}{2}'
    """
    problem, solution = raw["problem"], raw["solution"]
    answer = boxed_answer(solution or "")
    if not problem or answer is None:
        return None
    return {"prompt": problem_prompt(problem), "solution": f" {solution}", "answer": answer}
