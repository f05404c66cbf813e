"""A user's own rows, from a file in CSV, JSON, JSON lines or parquet, by the names that its columns have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ippo.data.source import Source
from ippo.data.splits import SplitOptions, task_of
from ippo.data.task import Row, Task
from ippo.data.writing import in_box
from ippo.errors import UsageError, near, require
from ippo.rewards import CHOICES, LATEX, NUMBERS

_FORMATS = {"numbers": NUMBERS, "latex": LATEX, "choices": CHOICES}


@dataclass(frozen=True)
class ColumnOptions:
    """Of the task ``file``: which column is what.

    Args:
        prompt: the column of the problems.
        solution: the column of the worked solutions.
        answer: the column of the final answers; null reads them from the solutions.
        answers: how they are written: ``numbers`` after ``####``, ``latex`` in a box, or ``choices``, a letter after
            ``####``.
    """

    prompt: str = "prompt"
    solution: str = "solution"
    answer: str | None = "answer"
    answers: Literal["numbers", "latex", "choices"] = "numbers"


def file_task(path: str | None, names: ColumnOptions = ColumnOptions(), options: SplitOptions = SplitOptions()) -> Task:
    """A task of the rows in a file or a directory of files; all columns reach the reward and the check.

    A solution that does not end in its answer, as the format writes it, gets it: the policy learns to write it so.

    Raises:
        UsageError: if nothing can be read there, a column is missing, or there are too few rows.
    """
    if path is None:
        raise UsageError("task_path", None, "say which file: --task_path problems.csv")
    found: dict[str, list[dict[str, Any]]] = {}
    for split, table in Source("your file", columns=()).tables(path):
        for kind in ("prompt", "solution", "answer"):
            name, there = getattr(names, kind), table.column_names
            remedy = f"there is no such column in {path}, which has {', '.join(there)}{near(name, there)}"
            require(name is None or name in there, f"columns.{kind}", name, remedy)
        found.setdefault(split, []).extend(table.to_list())
    return task_of("file", found, lambda raw: to_row(raw, names), _FORMATS[names.answers], path, options)


def to_row(raw: dict[str, Any], names: ColumnOptions) -> Row | None:
    """A row of the task, or None where a text is missing.

    Example:
        >>> row = to_row({"question": "2 + 2?", "solution": "2 + 2 = 4", "answer": 4}, ColumnOptions(prompt="question"))
        >>> row["prompt"], row["solution"], row["answer"]
        ('2 + 2?\\n', '2 + 2 = 4\\n#### 4', '4')
    """
    form = _FORMATS[names.answers]
    prompt, solution = _text(raw[names.prompt]), _text(raw[names.solution])
    row = {**raw, "prompt": f"{prompt}\n", "solution": solution}
    known = {name: raw[name] for name in form.reads if name in raw}
    read = form.read(solution, *(known.get(name) for name in form.reads))
    answer = _text(raw[names.answer]) if names.answer else read
    if not prompt or not answer:
        return None
    if read is None or not form.equal(answer, read):
        row["solution"] = in_box(solution, answer).strip() if form is LATEX else f"{solution}\n#### {answer}".lstrip()
    return {**row, "answer": answer}


def _text(value: Any) -> str:
    """A cell as it was written: a whole number that a column with gaps has turned into a float is whole again."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()
