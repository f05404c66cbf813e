"""Every judged answer in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from ippo.distributed import rank, world_size
from ippo.rollout.episodes import write_parquet

_COLUMNS = ("prompt", "gold", "response", "finished", "answer", "correct", "chain")


class AnswerLogger(L.Callback):
    """Writes the answers of a test to a parquet file, a row an answer.

    Columns: ``prompt``, ``gold`` (the right answer), ``response``, ``finished`` (whether it ended by itself),
    ``answer`` (the one that was read from it), ``correct`` (never, where it is unfinished) and ``chain`` (its class,
    :data:`ippo.rewards.ChainClass`).

    Args:
        path: the file; with several ranks each has its own, ``NAME-rank-00.parquet``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.table: dict[str, list[Any]] = {}

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.table = {name: [] for name in _COLUMNS}

    def on_answers(self, trainer: L.Trainer, pl_module: L.LightningModule, answers: dict[str, list[Any]]) -> None:
        """Called with the columns of each batch of judged answers, in validation too."""
        if trainer.testing:
            for name in _COLUMNS:
                self.table[name] += answers[name]

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if world_size() > 1:
            self.path = self.path.with_stem(f"{self.path.stem}-rank-{rank():02d}")
        write_parquet(self.table, self.path)
