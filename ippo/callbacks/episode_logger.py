"""Every episode in a file, so that anyone can look at what was kept, what was dropped and why."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from ippo.callbacks.tensorboard.answers import quoted
from ippo.distributed import rank
from ippo.errors import require
from ippo.rollout.episodes import Episodes, write_parquet


class EpisodeLogger(L.Callback):
    """Writes each iteration's episodes, dropped ones included, to a parquet file, and some of their texts to
    TensorBoard.

    ``datasets.load_dataset("parquet", data_files="<directory>/*.parquet")`` reads them all. Columns: ``iteration``,
    ``prompt``, ``response``, ``reward``, ``finished``, the verdict (``answer``, ``correct``, ``chain``, ``faithful``),
    ``reward_raw`` (before the ceiling of unfinished responses; ``reward_<name>`` of several reward functions),
    ``score`` (``score_<name>`` of a filter with another name), ``weight``, ``kept``, ``reason``, and ``tokens`` and
    ``token_scores`` where a filter was asked for them.

    Args:
        directory: where the files go; ``episodes/`` in the trainer's root directory by default.
        texts: episodes shown in TensorBoard at a time.
        every_n_iterations: how often texts are shown; the files hold every iteration.
    """

    def __init__(self, directory: str | Path | None = None, texts: int = 6, every_n_iterations: int = 10) -> None:
        require(texts >= 0, "texts", texts, "use 0 (none) or more")
        require(every_n_iterations >= 1, "every_n_iterations", every_n_iterations, "use at least 1")
        self.directory, self.texts, self.every_n_iterations = directory, texts, every_n_iterations

    def on_update_start(self, trainer: L.Trainer, pl_module: L.LightningModule, episodes: Episodes) -> None:
        """Called with the survivors of all filters; the others travel with them."""
        iteration = trainer.current_epoch
        table = episodes.records()
        rows = len(table["prompt"])
        table.setdefault("score", [None] * rows)
        if "chain" in table:
            known = {"faithful": True, "unverifiable": None}
            table["faithful"] = [known.get(chain, False) for chain in table["chain"]]
        folder = Path(self.directory) if self.directory is not None else Path(trainer.default_root_dir) / "episodes"
        write_parquet(
            {"iteration": [iteration] * rows, **table}, folder / f"iteration-{iteration:05d}-rank-{rank():02d}.parquet"
        )
        if isinstance(pl_module.logger, TensorBoardLogger) and iteration % self.every_n_iterations == 0:
            pl_module.logger.experiment.add_text("episodes", self._page(table), iteration)

    def _page(self, table: dict[str, list]) -> str:
        """Markdown for TensorBoard. What a model wrote is data: it is escaped, and stands in code blocks."""
        pages = []
        for place in range(min(self.texts, len(table["prompt"]))):
            row = {name: values[place] for name, values in table.items()}
            pages.append(f"{_facts(row)}\n\n{quoted(row['prompt'] + row['response'])}")
        return "\n\n".join(pages)


def _facts(row: dict[str, Any]) -> str:
    """What became of an episode, in a line.

    Example:
        >>> _facts({"reward": 1.0, "finished": True, "chain": "faithful", "score": 0.012, "weight": 1.5, "reason": ""})
        '**kept** · weight 1.5 · reward 1 · faithful · score 0.012'
        >>> _facts({"reward": 0.0, "finished": False, "score": None, "weight": 0.0, "reason": "score <= 0"})
        '**dropped** (score &lt;= 0) · reward 0 · unfinished'
    """
    reason = html.escape(row["reason"])
    parts = [f"**dropped** ({reason})"] if reason else ["**kept**", f"weight {row['weight']:.3g}"]
    parts += [f"reward {row['reward']:.3g}", *([] if row["finished"] else ["unfinished"])]
    parts += [html.escape(str(row["chain"]))] if "chain" in row else []
    parts += [f"score {row['score']:.3g}"] if row.get("score") is not None else []
    return " · ".join(parts)
