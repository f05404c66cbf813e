"""The tasks of the command line: those that have a name, and a user's own."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ippo.data import ColumnOptions, EmbeddedOptions, SplitOptions, Task, embedded_task
from ippo.data.collegemath import collegemath_task
from ippo.data.competition_math import math_task
from ippo.data.ecqa import ecqa_task
from ippo.data.file import file_task
from ippo.data.gsm8k import gsm8k_task
from ippo.data.gsm_symbolic import GSMSymbolicOptions, gsm_symbolic_task
from ippo.data.olympiadbench import olympiadbench_task
from ippo.errors import UsageError, near, require

_FROM_DATA: dict[str, Callable[[str | None, SplitOptions], Task]] = {
    "gsm8k": gsm8k_task,
    "math": math_task,
    "collegemath": collegemath_task,
    "olympiadbench": olympiadbench_task,
    "ecqa": ecqa_task,
}

TASKS = ("embedded", "gsm_symbolic", "file", *_FROM_DATA)


def load_task(
    name: str,
    path: str | None = None,
    splits: SplitOptions = SplitOptions(),
    embedded: EmbeddedOptions = EmbeddedOptions(),
    among: Sequence[str] = TASKS,
    names: ColumnOptions = ColumnOptions(),
    gsm_symbolic: GSMSymbolicOptions = GSMSymbolicOptions(),
) -> Task:
    """The task called ``name``.

    Args:
        name: as on the command line; ``module:function`` for one that ``function()`` makes.
        path: a local copy of the data set; the hub when None.
        splits: sizes, and what becomes of rows that do not fit.
        embedded: dials of the embedded task.
        among: the tasks of the recipe.
        names: which column is what, in a file of the user's.
        gsm_symbolic: dials of GSM-Symbolic.

    Raises:
        UsageError: if there is none, or it cannot be read.
    """
    if ":" in name:
        require(path is None, "task_path", path, f"{name} is made by your function, which reads its own files")
        return _made_by(name)
    require(name in among, "task", name, f"use {', '.join(among)}, or module:function{near(name, among)}")
    if name == "file":
        return file_task(path, names, splits)
    if name in _FROM_DATA:
        return _FROM_DATA[name](path, splits)
    require(path is None, "task_path", path, f"{name} is made in code and reads no file: leave this out")
    return embedded_task(embedded) if name == "embedded" else gsm_symbolic_task(splits, gsm_symbolic)


def _made_by(name: str) -> Task:
    """The task that ``module:function`` makes."""
    function = named("task", name)
    task = function()
    remedy = f"{function.__name__}() must return an ippo.data.Task, not {type(task).__name__}"
    require(isinstance(task, Task), "task", name, remedy)
    return task


def named(argument: str, name: str) -> Callable[..., Any]:
    """The function that ``module:function`` names; modules of the working directory are found as well.

    Raises:
        UsageError: if there is none.
    """
    require(name.count(":") == 1, argument, name, "say module:function, as my_file:my_function")
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        make = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise  # a module that the user's own one asks for
        raise UsageError(
            argument, name, f"there is no module {module!r} here: is its directory the working one?"
        ) from error
    remedy = f"{module} has no function {function!r}{near(function, dir(importlib.import_module(module)))}"
    require(callable(make), argument, name, remedy)
    return make  # type: ignore[return-value]
