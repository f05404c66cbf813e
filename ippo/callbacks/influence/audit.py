"""Files of every decision, so that a user can look at what was dropped."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Union

import pyarrow.compute
from pyarrow import parquet
from torch import Tensor

from ippo.callbacks.influence.batch_rows import column
from ippo.distributed import rank
from ippo.errors import require
from ippo.influence import Selection
from ippo.rollout.episodes import Episodes, write_parquet

RowId = Union[str, Callable[..., Any], None]
"""The batch's entry that tells rows apart, or a function from a batch to one id a row."""

_LARGEST = 100_000  # rows held in memory before they are written


class Audit:
    """Collects selections and writes them as parquet, a file an epoch and rank, or several where an epoch is long.

    ``datasets.load_dataset("parquet", data_files="<directory>/*.parquet")`` reads them all. Columns: ``epoch``,
    ``batch`` (counted over all epochs), ``row``, ``id``, ``score``, ``weight``, ``kept`` and ``reason``.

    Each batch is told once: what a run that is resumed has written after its checkpoint, and does again, is taken out.

    Args:
        directory: where the files go.
        name: the start of their names.
        row_id: see :data:`RowId`; without one ``id`` is empty, and batch and row tell rows apart.
        batches: how many batches were filtered before, by the run that goes on.

    Raises:
        UsageError: if a run that starts anew finds the files of another.
    """

    def __init__(self, directory: Path, name: str, row_id: RowId = None, batches: int = 0) -> None:
        self.directory, self.name, self.row_id = directory, name, row_id
        self._rows: dict[str, list[Any]] = defaultdict(list)
        self._epoch = -1
        own = re.compile(rf"{re.escape(name)}-\d+-\d+-rank-{rank():02d}\.parquet")
        there = [file for file in directory.glob("*.parquet") if own.fullmatch(file.name)]
        remedy = "it holds the decisions of another run: name another directory, or another trainer.default_root_dir"
        require(batches > 0 or not there, "audit", str(directory), remedy)
        for file in there:
            _forget(file, batches)

    def add(self, epoch: int, number: int, batch: Any, selection: Selection) -> None:
        """Take in the selection on the rows of a batch, before any of them leaves it."""
        if epoch != self._epoch:
            self.flush()
            self._epoch = epoch
        rows = len(selection.scores)
        ids = self._ids(batch, rows)
        self._rows["epoch"] += [epoch] * rows
        self._rows["batch"] += [number] * rows
        self._rows["row"] += range(rows)
        self._rows["id"] += ids
        self._rows["score"] += selection.scores.tolist()
        self._rows["weight"] += selection.weights.tolist()
        self._rows["kept"] += selection.kept.tolist()
        self._rows["reason"] += selection.reasons
        if len(self._rows["score"]) >= _LARGEST:
            self.flush()

    def flush(self) -> None:
        """Write what has come in since the last time."""
        if self._rows:
            names = (f"{self.name}-{self._epoch:05d}-{part:03d}-rank-{rank():02d}" for part in itertools.count())
            files = (self.directory / f"{name}.parquet" for name in names)
            write_parquet(self._rows, next(file for file in files if not file.exists()))
            self._rows.clear()

    def _ids(self, batch: Any, rows: int) -> list[Any]:
        found = self.row_id(batch) if callable(self.row_id) else column(batch, self.row_id or "")
        if isinstance(self.row_id, str) and found is None and isinstance(batch, Episodes):
            found = batch.extras.get(self.row_id)
        known = self.row_id is None or found is not None
        require(known, "row_id", self.row_id, f"a {type(batch).__name__} has no such entry: give a function of it")
        ids = found.tolist() if isinstance(found, Tensor) else [None] * rows if found is None else list(found)
        fits = len(ids) == rows
        require(fits, "row_id", self.row_id, f"it gives {len(ids)} ids for {rows} rows: give one a row")
        return ids


def _forget(file: Path, batches: int) -> None:
    """Take out of a file what is about batches from this number on."""
    table = parquet.read_table(file)
    known = table.filter(pyarrow.compute.less(table["batch"], batches))
    if not known.num_rows:
        file.unlink()
    elif known.num_rows < table.num_rows:
        write_parquet(known.to_pydict(), file)
