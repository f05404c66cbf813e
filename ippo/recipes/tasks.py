"""The tasks that have a name on the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ippo.data import EmbeddedOptions, SplitOptions, Task, embedded_task
from ippo.data.collegemath import collegemath_task
from ippo.data.competition_math import math_task
from ippo.data.ecqa import ecqa_task
from ippo.data.gsm8k import gsm8k_task
from ippo.data.gsm_symbolic import gsm_symbolic_task
from ippo.data.olympiadbench import olympiadbench_task
from ippo.errors import require

_FROM_DATA: dict[str, Callable[[str | None, SplitOptions], Task]] = {
    "gsm8k": gsm8k_task,
    "math": math_task,
    "collegemath": collegemath_task,
    "olympiadbench": olympiadbench_task,
    "ecqa": ecqa_task,
}

TASKS = ("embedded", "gsm_symbolic", *_FROM_DATA)


def load_task(
    name: str,
    path: str | None = None,
    splits: SplitOptions = SplitOptions(),
    embedded: EmbeddedOptions = EmbeddedOptions(),
    among: Sequence[str] = TASKS,
) -> Task:
    """The task called ``name``.

    Args:
        name: as on the command line.
        path: a local copy of the data set; the hub when None.
        splits: sizes, and what becomes of rows that do not fit.
        embedded: dials of the embedded task.
        among: the tasks of the recipe.

    Raises:
        UsageError: if there is none, or it cannot be read.
    """
    require(name in among, "task", name, f"use {', '.join(among)}")
    if name in _FROM_DATA:
        return _FROM_DATA[name](path, splits)
    require(path is None, "task_path", path, f"{name} is made in code and reads no file: leave this out")
    return embedded_task(embedded) if name == "embedded" else gsm_symbolic_task(splits)
