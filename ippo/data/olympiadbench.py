"""OlympiadBench, physics: competition problems in text alone, open-ended answers (He et al. 2024, arXiv 2402.14008).

Hub: ``Hothan/OlympiadBench``, configuration ``OE_TO_physics_en_COMP`` (open-ended, text-only, physics, English); a
train split alone, which is divided. Columns ``question``, ``solution`` and ``final_answer`` (lists of texts),
``context``, ``unit``, ``error`` (how far a number may be off), ``answer_type``, ``modality``, ``question_type``,
``subject``, ``language`` (the hub's data card). Rows of a larger copy that are no such problem are left out.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ippo.data.source import Source
from ippo.data.splits import SplitOptions, task_from
from ippo.data.task import Row, Task
from ippo.data.writing import in_box, problem_prompt
from ippo.rewards import MEASURES

_WANTED = {"modality": "text", "question_type": "open", "subject": "physics", "language": "english"}
SOURCE = Source(
    "Hothan/OlympiadBench",
    columns=("question", "solution", "final_answer"),
    optional=("context", "unit", "error", "answer_type", *_WANTED),
    configs=("OE_TO_physics_en_COMP",),
)


def olympiadbench_task(path: str | Path | None = None, options: SplitOptions = SplitOptions()) -> Task:
    """OlympiadBench's text-only open-ended physics from the hub, or from a local copy in its schema."""
    return task_from("olympiadbench", SOURCE, to_row, MEASURES, path, options)


def to_row(raw: dict[str, Any]) -> Row | None:
    """A row of the task.

    Example:
        >>> row = {"question": "How long?", "solution": ["..."], "final_answer": ["$3.0$"], "error": "1e-1"}
        >>> {key: to_row(row)[key] for key in ("answer", "tolerance")}
        {'answer': '3.0', 'tolerance': 0.1}
    """
    if any(not str(raw.get(column) or kind).lower().startswith(kind) for column, kind in _WANTED.items()):
        return None
    answer = ", ".join(text.strip().strip("$").strip() for text in _texts(raw["final_answer"]))
    if not raw["question"] or not answer or raw.get("answer_type") == "Need_human_evaluate":
        return None
    question = "\n".join(_texts([raw.get("context"), raw["question"]]))
    if raw.get("unit"):
        question = f"{question}\nGive the answer in {raw['unit']}."
    solution = in_box("\n".join(_texts(raw["solution"])), answer)
    tolerance = _tolerance(raw.get("error"))
    return {
        "prompt": problem_prompt(question, "PHYSICS"),
        "solution": solution,
        "answer": answer,
        "tolerance": tolerance,
    }


def _texts(value: Any) -> list[str]:
    return [text for text in (value if isinstance(value, list) else [value]) if text]


def _tolerance(error: Any) -> float:
    """How far a number may be off; 0 where the data set does not say, or says it for several answers apart."""
    try:
        off = float(error or 0)
    except ValueError:
        return 0.0
    return off if math.isfinite(off) else 0.0
