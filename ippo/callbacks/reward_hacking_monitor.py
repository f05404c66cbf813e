"""Is the reward being gamed? The scores say so while the reward still rises."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Union

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from ippo.callbacks.influence.batch_rows import column
from ippo.callbacks.influence.curves import logs_now
from ippo.callbacks.influence.scored import Scored
from ippo.callbacks.influence_filter import InfluenceFilterCallback
from ippo.distributed import gather, rank
from ippo.errors import require
from ippo.influence import Alarm, Direction, ReturnDirection, RewardHackingDetector
from ippo.influence.directions import without_adam
from ippo.rollout.episodes import Episodes, write_parquet

RowRewards = Union[Callable[..., Any], str]
"""A function from what is scored to [n] rewards, or the name of its entry that holds them."""


class RewardHackingMonitor(L.Callback):
    """Gives an alarm when more and more of what the reward pays for opposes the gold set.

    It listens to an :class:`InfluenceFilterCallback`, one that acts or one with ``dry_run=True``, and sees all that the
    filter has scored before any of it is dropped. A :class:`ippo.influence.RewardHackingDetector` judges each
    iteration: a rollout buffer, or so many rows of batches. Its figures are the curves ``hacking/*``.

    An alarm is told once. It names the iteration from which it went wrong, and where the checkpoint of the time before
    is: ``before.ckpt`` in its directory, another name for the file that a ``ModelCheckpoint`` had written last, so
    that it is still there when that one has gone on. The rewarded episodes that opposed the gold set are written to a
    parquet file beside it, the lowest scores first, one file a rank.

    Args:
        stop: end the training at the alarm, after the iteration that gave it.
        patience: an alarm takes so many iterations that go wrong, at least.
        rewards: where the rewards of what is scored are: its entry or attribute of that name, or a function of it.
        threshold: an episode is rewarded if its reward is above this; None for the mean of the iteration's rewards.
        detector: what judges, with options of its own; None takes the defaults, with the two above.
        rows_per_iteration: of a filter with ``unit="batch"``, so many rows make an iteration.
        row_id: what the file of the alarm calls a row, where batches are scored: the batch's entry of that name.
        directory: for the files, inside the trainer's root directory.
        filter: the name of the filter to listen to; None for the trainer's first one.

    Raises:
        UsageError: if an option is out of range; at the start of training, if there is no such filter, or its scores
            say nothing of gold solutions.
    """

    def __init__(
        self,
        stop: bool = False,
        patience: int = 2,
        rewards: RowRewards = "rewards",
        threshold: float | None = 0.5,
        detector: RewardHackingDetector | None = None,
        rows_per_iteration: int = 256,
        row_id: str | None = None,
        directory: str | Path = "hacking",
        filter: str | None = None,
    ) -> None:
        require(rows_per_iteration >= 1, "rows_per_iteration", rows_per_iteration, "use at least 1")
        by_default = RewardHackingDetector(patience=patience, threshold=threshold)
        self.detector = detector if detector is not None else by_default
        self.stop, self.rewards, self.rows_per_iteration, self.row_id = stop, rewards, rows_per_iteration, row_id
        self.directory, self.filter = directory, filter
        self._heard = ""  # the filter's name, from the start of training on
        self.stopping_reason_message: str | None = None
        self.checkpoint: str | None = None  # the last one before the rise that the detector sees, if it sees one
        self._pool: dict[str, list[Tensor]] = defaultdict(list)  # of all ranks, until an iteration is full
        self._rows: dict[str, list[Any]] = defaultdict(list)  # of this rank, for the file of an alarm

    @property
    def alarm(self) -> Alarm | None:
        """What it was, once there was one."""
        return self.detector.alarm

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a trainer in which nobody scores, or none against gold solutions."""
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        filters = [one for one in callbacks if isinstance(one, InfluenceFilterCallback)]
        heard = [one for one in filters if self.filter in (None, one.name)]
        remedy = "no such InfluenceFilterCallback is there: add one, with dry_run=True if it shall not act"
        require(bool(heard), "filter", self.filter, remedy)
        self._heard = heard[0].name
        said = "its scores compare rows with one another, or with what the watched reward itself says"
        remedy = f"{said}: give it direction=ValidationDirection(gold batches, losses), or judged_by='check'"
        require(knows_gold(heard[0]), "filter", self._heard, remedy)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stopping_reason_message = None

    def on_scored(self, trainer: L.Trainer, pl_module: L.LightningModule, scored: Scored) -> None:
        """Take in what the filter has judged; all ranks alike."""
        if scored.name != self._heard:
            return
        self._take(trainer, scored)
        if scored.unit == "batch" and sum(map(len, self._pool["scores"])) < self.rows_per_iteration:
            return
        pool, told = {name: torch.cat(parts) for name, parts in self._pool.items()}, self.alarm is not None
        alarm = self.detector.update(pool["rewards"], pool["scores"], pool.get("groups"))
        if not told:
            self._keep_checkpoint(trainer)
        if scored.unit == "buffer" or logs_now(trainer):
            self._log(pl_module)
        if alarm is not None:
            self._tell(trainer, alarm)
        self._pool.clear()
        self._rows.clear()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """For those who monitor a curve, whichever steps were logged."""
        self._log(pl_module, logger=False, sync_dist=True)

    def state_dict(self) -> dict[str, Any]:
        pool = {name: torch.cat(parts) for name, parts in self._pool.items()}
        rows = {name: list(values) for name, values in self._rows.items()}
        return {"detector": self.detector.state_dict(), "checkpoint": self.checkpoint, "pool": pool, "rows": rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.detector.load_state_dict(state_dict["detector"])
        self.checkpoint = state_dict["checkpoint"]
        self._pool = defaultdict(list, {name: [values] for name, values in state_dict["pool"].items()})
        self._rows = defaultdict(list, {} if rank() else state_dict["rows"])  # a checkpoint has the first rank's

    # ---------------------------------------------------------------- what was scored

    def _take(self, trainer: L.Trainer, scored: Scored) -> None:
        """Put the rows of all ranks into the pool, and this rank's into the table of an alarm."""
        scores = scored.scores
        rewards = self._rewards_of(scored.rows, scores)
        self._pool["scores"].append(scored.selection.scores.detach().cpu())
        self._pool["rewards"].append(gather(rewards)[0].cpu())
        groups = column(scored.rows, "groups")
        if groups is not None and scored.unit == "buffer":
            self._pool["groups"].append(gather(torch.as_tensor(groups, device=scores.device))[0].cpu())
        for name, values in self._table(trainer, scored, rewards).items():
            self._rows[name] += values

    def _rewards_of(self, rows: Any, scores: Tensor) -> Tensor:
        found = self.rewards(rows) if callable(self.rewards) else column(rows, self.rewards)
        given = self.rewards if isinstance(self.rewards, str) else getattr(self.rewards, "__name__", "a function")
        remedy = f"a {type(rows).__name__} has no such entry: give a function of it"
        require(found is not None, "rewards", given, remedy)
        rewards = torch.as_tensor(found, device=scores.device).detach().to(scores.dtype)
        fits = rewards.shape == scores.shape
        require(fits, "rewards", given, f"it gives {list(rewards.shape)} for {len(scores)} rows: give one a row")
        return rewards

    def _table(self, trainer: L.Trainer, scored: Scored, rewards: Tensor) -> dict[str, list[Any]]:
        """One plain column a name."""
        count, epoch = len(rewards), trainer.current_epoch
        if isinstance(scored.rows, Episodes):
            later = ("weight", "kept", "reason")  # decided after this
            records = scored.rows.records().items()  # what nobody has scored comes last
            table = {name: values[:count] for name, values in records if name not in later}
            return {"iteration": [epoch] * count, **table, "score": scored.scores.tolist()}
        ids = range(count) if self.row_id is None else column(scored.rows, self.row_id)
        remedy = f"a {type(scored.rows).__name__} has no such entry: name another, or none"
        require(ids is not None, "row_id", self.row_id, remedy)
        return {
            "epoch": [epoch] * count,
            "batch": [trainer.fit_loop.batch_idx] * count,
            "row": ids.tolist() if isinstance(ids, Tensor) else list(ids),
            "reward": rewards.tolist(),
            "score": scored.scores.tolist(),
        }

    # ---------------------------------------------------------------- what is told

    def _log(self, module: L.LightningModule, **options: Any) -> None:
        figures = self.detector.figures.items()
        module.log_dict({f"hacking/{name}": value for name, value in figures}, batch_size=1, **options)

    def _tell(self, trainer: L.Trainer, alarm: Alarm) -> None:
        file = self._write(trainer)
        before = f"checkpoint of the time before: {self.checkpoint}"
        before = before if self.checkpoint else "no checkpoint is from before"
        rank_zero_warn(f"reward hacking, iteration {alarm.iteration}: {alarm}. Such episodes: {file}; {before}.")
        if self.stop:
            self.stopping_reason_message = f"reward hacking from iteration {alarm.since} on"
            trainer.should_stop = True

    def _write(self, trainer: L.Trainer) -> Path:
        """This rank's rewarded rows that oppose the gold set, the lowest scores first."""
        cut = self.detector.threshold
        cut = torch.cat(self._pool["rewards"]).mean().item() if cut is None else cut
        order = sorted(range(len(self._rows["score"])), key=self._rows["score"].__getitem__)
        places = [row for row in order if self._rows["reward"][row] > cut and self._rows["score"][row] < 0]
        name = f"iteration-{self.detector.iterations - 1:05d}-rank-{rank():02d}.parquet"
        path = self._folder(trainer) / name
        write_parquet({name: [values[row] for row in places] for name, values in self._rows.items()}, path)
        return path

    def _keep_checkpoint(self, trainer: L.Trainer) -> None:
        """At the first sign of a rise give the newest checkpoint another name, under which it stays; take the name away
        when the rise comes to nothing."""
        kept, since = self._folder(trainer) / "before.ckpt", self.detector.since
        if rank() or since not in (None, self.detector.iterations - 1):
            return
        if self.checkpoint is not None or since is not None:  # of a rise that is over, or of a run that was cut short
            self.checkpoint = None
            kept.unlink(missing_ok=True)
        newest = max(_checkpoints(trainer), key=lambda path: path.stat().st_mtime, default=None)
        if since is None or newest is None:
            return
        self.checkpoint = str(kept)
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            os.link(newest, kept)
        except OSError:  # a directory, or a file system without links: it stays if its callback lets it
            self.checkpoint = str(newest)

    def _folder(self, trainer: L.Trainer) -> Path:
        return Path(trainer.default_root_dir) / self.directory


def knows_gold(influence_filter: InfluenceFilterCallback) -> bool:
    """Whether a filter holds rows against something apart from them, and from the reward that is watched."""
    direction = influence_filter.direction
    if direction is None:
        return influence_filter.unit == "buffer"  # by default the gold solutions; of a batch its own mean
    inner = without_adam(direction)
    if isinstance(inner, ReturnDirection) and inner.loss is None and inner.judged_by == "reward":
        return False
    return not (isinstance(direction, Direction) and direction.needs_buffer)


def _checkpoints(trainer: L.Trainer) -> list[Path]:
    """What the trainer's checkpoint callbacks have on disk."""
    folders = {getattr(one, "dirpath", None) for one in trainer.checkpoint_callbacks}
    return [path for folder in folders if folder for path in Path(folder).glob("*.ckpt")]
