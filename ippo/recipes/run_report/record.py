"""What a run has left in its directory, for the report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow
import yaml
from pyarrow import parquet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ippo.errors import require

Curve = list[tuple[int, float]]
"""Iteration and value of each point."""

_IN_SUMMARY = {
    "accuracy/em": "em",
    "accuracy/hacked": "hacked",
    "accuracy/false_positive": "false_positive",
    "reward/mean": "reward",
    "influence/kept_fraction": "kept_fraction",
    "influence/gold_loss": "gold_loss",
}


@dataclass(frozen=True)
class Record:
    """A run's directory, for reading. Whatever is missing there, as the summary of a run that was killed, is empty.

    Args:
        path: of the directory.

    Raises:
        UsageError: if it holds no run.
    """

    path: Path

    def __post_init__(self) -> None:
        found = (self.path / "config.yaml").exists()
        require(found, "run", str(self.path), "there is no config.yaml: give the directory of a run")

    @cached_property
    def options(self) -> dict[str, Any]:
        return yaml.safe_load((self.path / "config.yaml").read_text())

    @property
    def dry_run(self) -> bool:
        """Whether there were filters, and all of them were only to look."""
        callbacks = (self.options.get("trainer") or {}).get("callbacks") or []
        found = [one for one in (self.options.get("filter"), *callbacks) if isinstance(one, dict)]
        names = (str(one.get("class_path")).rpartition(".")[2] for one in found)
        filters = [one for one, name in zip(found, names, strict=True) if name == "InfluenceFilterCallback"]
        return bool(filters) and all((one.get("init_args") or {}).get("dry_run") for one in filters)

    @cached_property
    def summary(self) -> dict[str, Any]:
        return self._json("summary.json")

    @property
    def iterations(self) -> list[dict[str, Any]]:
        return self.summary.get("iterations", [])

    @cached_property
    def answers(self) -> dict[str, Any]:
        """``before`` and ``after``: answers to the same problems; ``of``: which split."""
        return self._json("answers.json")

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """By tag: of TensorBoard's files, and where there are none what the summary knows."""
        found: dict[str, Curve] = {}
        if any((self.path / "ppo").glob("events.out.tfevents.*")):
            events = EventAccumulator(str(self.path / "ppo"), size_guidance={"scalars": 0, "histograms": 1}).Reload()
            for tag in events.Tags()["scalars"]:
                last = {point.step: point.value for point in events.Scalars(tag)}  # an iteration may be done again
                found[tag] = sorted(last.items())
        filtered = any(one.get("kept_fraction", 1.0) != 1.0 for one in self.iterations)
        for tag, name in _IN_SUMMARY.items():
            if filtered or name != "kept_fraction":
                values = enumerate(one.get(name) for one in self.iterations)
                found.setdefault(tag, [(place, value) for place, value in values if value is not None])
        return found

    def first_of(self, *tags: str) -> Curve:
        """The first of these curves that has points; a tag that begins with ``*/`` is of any filter."""
        for tag in tags:
            any_filter = [one for one in self.curves if one.endswith(tag[1:]) and not one.startswith("baseline/")]
            names = any_filter if tag.startswith("*/") else [tag]
            for name in names:
                if self.curves.get(name):
                    return self.curves[name]
        return []

    def episodes(self, columns: tuple[str, ...]) -> dict[str, list[Any]]:
        """Some columns of all episodes; one that a file lacks is left out."""
        files = sorted((self.path / "episodes").glob("iteration-*.parquet"))
        names = [name for name in columns if files and name in parquet.read_schema(files[0]).names]
        if not names:
            return {}
        tables = [parquet.read_table(file, columns=names) for file in files]
        return pyarrow.concat_tables(tables, promote_options="permissive").to_pydict()

    def scored(self) -> tuple[int, list[dict[str, Any]]]:
        """The last iteration with scores, and its episodes from the lowest to the highest."""
        for iteration, files in self._by_iteration():
            if "score" in parquet.read_schema(files[0]).names:
                rows = [row for file in files for row in parquet.read_table(file).to_pylist()]
                known = [row for row in rows if row["score"] is not None and row["score"] == row["score"]]
                if known:
                    return iteration, sorted(known, key=lambda row: row["score"])
        return 0, []

    def alarm(self) -> int | None:
        """The iteration in which the alarm against gamed rewards sounded."""
        found = [file.name.split("-")[1] for file in (self.path / "hacking").glob("iteration-*-rank-*.parquet")]
        return min(map(int, found), default=None)

    def _by_iteration(self) -> Iterator[tuple[int, list[Path]]]:
        """From the last one on."""
        files: dict[int, list[Path]] = {}
        for file in sorted((self.path / "episodes").glob("iteration-*.parquet"), reverse=True):
            files.setdefault(int(file.name.split("-")[1]), []).append(file)
        yield from files.items()

    def _json(self, name: str) -> dict[str, Any]:
        file = self.path / name
        return json.loads(file.read_text()) if file.exists() else {}
