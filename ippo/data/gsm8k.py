"""GSM8K: grade-school word problems with step-by-step solutions (Cobbe et al. 2021, arXiv 2110.14168).

Hub: ``openai/gsm8k``, configuration ``main``; columns ``question`` and ``answer``, splits train and test. The answer is
the worked solution with its sums in ``<<48/2=24>>`` and the result after ``####`` (the hub's data card). Both stay as
they are: what the policy learns to write can be checked. The prompt is that of VinePPO's public configuration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ippo.data.source import Source
from ippo.data.splits import SplitOptions, task_from
from ippo.data.task import Row, Task
from ippo.data.writing import problem_prompt
from ippo.rewards import NUMBERS, final_answer

SOURCE = Source("openai/gsm8k", columns=("question", "answer"), configs=("main",))


def gsm8k_task(path: str | Path | None = None, options: SplitOptions = SplitOptions()) -> Task:
    """GSM8K from the hub, or from a local copy in its schema."""
    return task_from("gsm8k", SOURCE, to_row, NUMBERS, path, options)


def to_row(raw: dict[str, Any]) -> Row | None:
    """A row of the task.

    Example:
        >>> to_row({"question": "2 and 2?", "answer": "2+2 = <<2+2=4>>4\\n#### 4"})["answer"]
        '4'
    """
    question, solution = raw["question"], raw["answer"]
    answer = final_answer(solution or "")
    if not question or answer is None:
        return None
    return {"prompt": problem_prompt(question), "solution": f" {solution}", "answer": answer}
