"""The episodes that a run has written down."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import yaml
from pyarrow import parquet

from ippo.data import EmbeddedOptions, embedded_task
from ippo.errors import require
from ippo.experiments.diagnosis.contrasts import CONTRASTS, auc_by_iteration

OTHERS = "score_"
"""How the columns of further filters begin; see ``name`` of :class:`ippo.callbacks.InfluenceFilterCallback`."""

_NEEDED = ("iteration", "reward", "score", "chain", "kept", "weight")


@dataclass(frozen=True)
class Run:
    """A run directory, for reading.

    Args:
        path: of the directory.
    """

    path: Path

    def __post_init__(self) -> None:
        files = list((self.path / "episodes").glob("*.parquet"))
        require(bool(files), "run", str(self.path), "there are no episodes/*.parquet: give the directory of a run")
        found = parquet.read_schema(files[0]).names
        missing = [name for name in _NEEDED if name not in found]
        remedy = f"its episodes lack {', '.join(missing)}: give a run of a task whose chains of thought are checked"
        require(not missing, "run", str(self.path), remedy)

    @cached_property
    def episodes(self) -> dict[str, Any]:
        """Columns of all iterations, in their order: arrays, and lists where a row holds a list.

        Raises:
            UsageError: if nothing was scored.
        """
        files = sorted((self.path / "episodes").glob("*.parquet"))
        table = pyarrow.concat_tables([parquet.read_table(file) for file in files], promote_options="permissive")
        columns: dict[str, Any] = {name: table[name].to_pylist() for name in table.column_names}
        scored = [score is not None for score in columns["score"]]
        remedy = "none of its episodes has a score: run it with a filter, or with one that has dry_run"
        require(any(scored), "run", str(self.path), remedy)
        columns = {name: [v for v, has in zip(values, scored, strict=True) if has] for name, values in columns.items()}
        plain = {name: np.asarray(columns[name]) for name in _NEEDED}
        others = {name: np.asarray(columns[name], float) for name in columns if name.startswith(OTHERS)}  # None is NaN
        return {**columns, **plain, **others, "rewarded": plain["reward"] > 0.5}

    @cached_property
    def aucs(self) -> dict[str, dict[int, float]]:
        """Of each contrast, the AUC of each iteration that tells one."""
        return {contrast: auc_by_iteration(self.episodes, contrast) for contrast in CONTRASTS}

    @cached_property
    def scores(self) -> list[str]:
        """The columns with scores: that of the filter, and those of further ones, NaN where one did not look."""
        return ["score", *(name for name in self.episodes if name.startswith(OTHERS))]

    @cached_property
    def iterations(self) -> list[dict[str, Any]]:
        """What ``summary.json`` says of each; empty for a run that has not ended."""
        summary = self.path / "summary.json"
        return json.loads(summary.read_text())["iterations"] if summary.exists() else []

    @cached_property
    def steps(self) -> dict[str, list[str]]:
        """The true steps of each problem, by its prompt; empty for a task that does not know them."""
        config = yaml.safe_load((self.path / "config.yaml").read_text())
        if config["task"] != "embedded":
            return {}
        task = embedded_task(EmbeddedOptions(**config["embedded"]))
        return {row["prompt"]: row["steps"] for row in task.train}
