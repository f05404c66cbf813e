"""I-PPO as a callback: score every episode, drop those that point the other way, reweight the rest, stop in time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from ippo.callbacks.influence.audit import Audit, RowId
from ippo.callbacks.influence.batch_rows import count_rows
from ippo.callbacks.influence.batch_selection import BatchSelection
from ippo.callbacks.influence.buffers import DictBuffer, as_buffer, cut
from ippo.callbacks.influence.curves import FilterCurves
from ippo.callbacks.influence.health import Health
from ippo.callbacks.influence.held_direction import DirectionHost, HeldDirection
from ippo.callbacks.influence.keep_by_gold import default_keep, gold_scorer
from ippo.callbacks.influence.scoring import Scoring, scored_module
from ippo.callbacks.influence.selecting import select_together
from ippo.callbacks.influence.survival import SurvivalStop
from ippo.errors import require
from ippo.influence import (
    BufferDirection,
    Direction,
    ExactScorer,
    KeepRule,
    PositiveScore,
    Proportional,
    Scorer,
    Selection,
    Uniform,
    ValidationDirection,
    WeightRule,
)
from ippo.influence.parameters import choose, trainable
from ippo.ppo.logprobs import LogprobPass
from ippo.ppo.stopwatch import stopwatch
from ippo.rollout.episodes import Episodes


class InfluenceFilterCallback(L.Callback):
    """Keeps the episodes whose gradient agrees with a reference direction (I-PPO, arXiv 2604.01597).

    Each episode is scored by the dot product of its loss gradient with the direction. ``keep`` decides who stays,
    ``weight`` how much each counts, and training stops by itself when too few survive for too long. Keep rule, weights
    and the decision to stop see the episodes of all ranks together.

    Two units of work, with the same options:

    - ``"buffer"``: rollouts. The module calls ``emit(trainer, self, "on_rollout_end", episodes)``, as
      :class:`ippo.PPOModule` does, and trains on what comes back.
    - ``"batch"``: the batches of any LightningModule, whose ``training_step`` stays as it is. Before each step, in
      Lightning's own ``on_train_batch_start``, rows leave the batch in place; after it they are back.

    Args:
        scorer: what computes the scores; its ``parameters`` say which parameters of the module count.
        direction: the gradient to agree with. None takes the module's gold solutions for a buffer, and for a batch
            its own mean gradient.
        keep: which episodes stay. None takes, of batches with gold rows of the same loss,
            :class:`ippo.influence.LikeGold`, which drops next to nothing where nothing is wrong, and else
            :class:`ippo.influence.PositiveScore`.
        weight: weights of those that stay; None is proportional to the score wherever weights are heard.
        min_survival: stop when a smaller share than this survives ...
        patience: ... in this many iterations in a row; of batches, in this many epochs.
        on_empty: when nothing survives, ``"skip"`` the update, ``"keep_all"`` of the episodes at weight 1, or
            ``"stop"``.
        batch_size: episodes of a buffer scored at a time; bounds memory, changes no score. None takes the module's
            ``ppo.micro_batch_size``, 64 where it has none; its ``ppo.micro_batch_tokens`` bounds it further.
        losses: ``losses(module, episodes or batch) -> [n]``, one loss a row. None takes the module's ``policy_losses``.
        one_pass: where scorer, direction and loss allow it, score in the pass that takes the old log-probabilities,
            which PPO needs anyway.
        token_scores: also note each token and its part of the score, for the episode files; needs ``one_pass``.
        drop_tokens: in the episodes that stay, silence the tokens that score below zero: their advantage becomes 0, so
            that an otherwise good episode loses its wrong step alone; needs ``one_pass``.
        unit: ``"buffer"`` or ``"batch"``.
        action: ``"drop"`` what is not kept, or leave all in place and only set ``weight``: 0 for them, and 1 on the
            mean over all, so that the mean of weight times loss is a mean over the kept.
        every_n_batches: filter one training batch in so many; the others pass as they are.
        warmup_batches: training batches that pass before the first is filtered.
        direction_every_n_batches: how long a computed direction is used, at most, before it is computed anew; it is
            sooner where a batch scores lower along it than the one that it was computed for, or other parameters are
            trained.
        direction_rows: gold rows read for a direction, each time the next ones, of other batches than tokenised
            sequences in whole batches; None for all.
        dry_run: score and log, but drop, weigh and stop nothing: what to turn on first.
        audit: directory, inside the trainer's root directory, for parquet files of every decision.
        row_id: what the audit files call a row; see :data:`ippo.callbacks.influence.audit.RowId`.
        select: ``select(batch, kept) -> None`` drops rows of a batch in place, for batches of a type of their own.
        name: the group of the curves; two filters in one trainer need two. Another than ``"influence"`` notes its
            scores as ``score_<name>``.

    Raises:
        UsageError: if an option is out of range; at the start of training, if the direction does not fit the module.
    """

    def __init__(
        self,
        scorer: Scorer | None = None,
        direction: Direction | Mapping[str, Tensor] | None = None,
        keep: KeepRule | None = None,
        weight: WeightRule | None = None,
        min_survival: float = 0.1,
        patience: int = 2,
        on_empty: Literal["skip", "keep_all", "stop"] = "skip",
        batch_size: int | None = None,
        losses: Callable[..., Any] | None = None,
        one_pass: bool = True,
        token_scores: bool = False,
        drop_tokens: bool = False,
        unit: Literal["buffer", "batch"] = "buffer",
        action: Literal["drop", "weight"] = "drop",
        every_n_batches: int = 1,
        warmup_batches: int = 0,
        direction_every_n_batches: int = 1,
        direction_rows: int | None = None,
        dry_run: bool = False,
        audit: str | Path | None = None,
        row_id: RowId = None,
        select: Callable[..., Any] | None = None,
        name: str = "influence",
    ) -> None:
        require(on_empty in ("skip", "keep_all", "stop"), "on_empty", on_empty, "use skip, keep_all or stop")
        require(unit in ("buffer", "batch"), "unit", unit, "use buffer or batch")
        require(action in ("drop", "weight"), "action", action, "use drop or weight")
        for option, value in (
            ("batch_size", 1 if batch_size is None else batch_size),
            ("every_n_batches", every_n_batches),
            ("direction_every_n_batches", direction_every_n_batches),
            ("direction_rows", 1 if direction_rows is None else direction_rows),
        ):
            require(value >= 1, option, value, "use at least 1")
        require(warmup_batches >= 0, "warmup_batches", warmup_batches, "use 0 or more")
        for option, value in (("token_scores", token_scores), ("drop_tokens", drop_tokens)):
            require(unit == "buffer" or not value, option, value, "rows of a batch have no tokens: use unit='buffer'")
        unheard = unit == "batch" and action == "drop" and not isinstance(weight, Uniform | None)
        found = type(weight).__name__
        require(
            not unheard, "weight", found, "rows that are dropped from a batch carry no weights: use action='weight'"
        )
        heard = unit == "buffer" or action == "weight"
        self.scorer = scorer if scorer is not None else ExactScorer()
        self.keep = keep if keep is not None else PositiveScore()
        self._keep_by_default = keep is None
        self.weight = weight if weight is not None else Proportional() if heard else Uniform()
        self.survival = SurvivalStop(min_survival, patience, by_epoch=unit == "batch")
        self.direction, self.losses, self.one_pass = direction, losses, one_pass
        self.token_scores, self.drop_tokens = token_scores, drop_tokens
        self.on_empty, self.batch_size, self.unit, self.action = on_empty, batch_size, unit, action
        self.every_n_batches, self.warmup_batches = every_n_batches, warmup_batches
        self.direction_every_n_batches, self.direction_rows = direction_every_n_batches, direction_rows
        self.dry_run, self.audit, self.row_id, self.select, self.name = dry_run, audit, row_id, select, name
        self._column = "score" if name == "influence" else f"score_{name}"  # of the episodes' extras
        self.batches = 0  # training batches seen
        self.applied: Selection | None = (
            None  # to the present batch or its episodes; None where nothing was done to them
        )
        self.stopping_reason_message: str | None = None
        self._scoring: Scoring  # known when training starts, as is the direction
        self._health: Health
        self._held_direction = HeldDirection({})
        self._restored: dict[str, Any] = {}  # its state in a checkpoint, until then
        self._audit: Audit | None = None
        self._curves = FilterCurves(name)
        self._cut = BatchSelection(action == "weight", select)
        self._judged = False  # the present batch, or its episodes
        self._emitted = False
        self._began = self._seconds = 0.0  # of this batch: when it began, and what scoring has taken of it so far

    # ---------------------------------------------------------------- before training

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse whatever can be told to be wrong before there is data."""
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        filters = [callback for callback in callbacks if isinstance(callback, InfluenceFilterCallback)]
        self._cut.undone = filters[0]._cut.undone
        if self.unit == "batch":
            iterator = is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True)
            remedy = "it draws its batches itself, out of reach: let it take a batch, or emit them with unit='buffer'"
            require(not iterator, "training_step", "with dataloader_iter", remedy)
        if self.losses is None:
            has = self.unit == "buffer" and hasattr(pl_module, "policy_losses")
            require(has, "losses", None, f"pass losses(module, {self.unit}) -> [n], one loss a row")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One trial of the direction, so that a wrong one is told before the first rollout."""
        module, direction = scored_module(pl_module), self.direction
        self.stopping_reason_message, self._emitted = None, False
        if direction is None:
            direction = BufferDirection() if self.unit == "batch" else ValidationDirection()
        host = DirectionHost(trainer, pl_module, self.losses, self.direction_rows)
        if isinstance(direction, Direction):
            direction = direction.bind(host)
        if self._keep_by_default:
            self.keep = default_keep(self.unit, direction, self.losses, self.scorer)
        self._held_direction = HeldDirection(
            direction,
            self.direction_every_n_batches,
            self.scorer.parameters,
            host.gold,
            gold_scorer(self.keep, direction, self.losses, self.scorer),
            lambda: trainer.fit_loop.batch_idx % trainer.accumulate_grad_batches == 0,
        )
        self._held_direction.load_state_dict(self._restored)
        self._health = Health(self.name, "gold_scores" not in self.keep.reads)
        self._scoring = Scoring(
            pl_module,
            self.scorer,
            self._held_direction,
            self.losses,
            self.batch_size or int(getattr(getattr(pl_module, "ppo", None), "micro_batch_size", 64)),
            self.one_pass,
            self.token_scores,
            self.drop_tokens,
            self.name,
        )
        self._scoring.begin()
        self._held_direction.check(module)
        if self.audit is not None:
            self._audit = Audit(Path(trainer.default_root_dir) / self.audit, self.name, self.row_id)
        parameters = trainable(module)
        chosen = sum(parameters[name].numel() for name in choose(module, self.scorer.parameters))
        size = sum(map(torch.numel, parameters.values()))
        rank_zero_info(f"{self.name}: rows score by {chosen:,} of the {size:,} parameters of {type(module).__name__}.")

    # ---------------------------------------------------------------- unit="buffer"

    def on_logprob_pass(self, trainer: L.Trainer, pl_module: L.LightningModule, look: LogprobPass) -> LogprobPass:
        """Take the old log-probabilities in forward mode: with them come their jvps, and from those the scores."""
        if self.unit == "batch" or not self._is_due or look.logprobs is not None or not self._scoring.in_one_pass:
            return look
        with self._timed(pl_module):
            return self._scoring.logprob_pass(look, self.batches)

    def on_rollout_end(self, trainer: L.Trainer, pl_module: L.LightningModule, episodes: Any) -> Any:
        """Score, keep, weigh; returns the survivors, in the type that came."""
        self._emitted = True
        if self.unit == "batch" or not self._is_due:
            return episodes
        buffer: Any = as_buffer(episodes)
        with self._timed(pl_module):
            buffer, scores = self._scoring.of_buffer(buffer, self.batches)
            selection, own = select_together(scores, episodes, self._bound_keep, self.weight)
        self._curves.rollout(pl_module, selection, self._held_direction.loss, episodes, self.batches - 1)
        self._conclude(trainer, selection, own, episodes)
        if isinstance(buffer, Episodes):
            buffer = buffer.with_extras(**{self._column: selection.scores[own].tolist()})
        if self._takes_effect(selection):
            self.applied = selection
            if self.drop_tokens and isinstance(buffer, Episodes):
                buffer = self._scoring.silenced(buffer)
            buffer = cut(buffer, selection, own, self.action == "weight")
        if isinstance(buffer, Episodes):
            buffer = dataclasses.replace(buffer, logprob_jvps=None)  # the next filter has a direction of its own
        return buffer.columns if isinstance(buffer, DictBuffer) else buffer

    # ---------------------------------------------------------------- unit="batch"

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let the rows that oppose the direction leave the batch, before the module's own step."""
        self._began, self._seconds = time.perf_counter(), 0.0
        self.applied, self._judged = None, False
        self.batches += 1
        if self.unit == "buffer" or not self._is_due:
            return
        with self._timed(pl_module):
            rows = None if self.select is not None else count_rows(batch)
            scores = self._scoring.of_batches([batch], self.batches)
            while self._held_direction.has_turned(scores, self.batches):  # once: the next direction is of this batch
                scores = self._scoring.of_batches([batch], self.batches)
            found = f"{len(scores)} losses for a batch of {rows} rows"
            require(rows in (None, len(scores)), "losses", found, "return one loss for each row, [n]")
            selection, own = select_together(scores, batch, self._bound_keep, self.weight)
        self._curves.batch(pl_module, selection, self._held_direction.loss, self.batches - 1)
        self._health.take_in(selection.scores, selection.survival, self._held_direction.loss)
        self._conclude(trainer, selection, own, batch)
        if self._takes_effect(selection):
            self.applied = selection
            self._cut.make(pl_module, batch, selection, own)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """On a rank without a survivor, let the batch add nothing to the gradient."""
        self._cut.silence(loss)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Make the batch whole again, and say what scoring took of the step."""
        self._cut.undo()
        whole = time.perf_counter() - self._began
        if self.unit == "batch":
            self._curves.step(pl_module, whole, self._seconds)
        elif self._seconds:
            pl_module.log(f"{self.name}/cost", self._seconds / whole)

    # ---------------------------------------------------------------- both

    @property
    def seconds(self) -> float:
        """What scoring has taken of the present batch."""
        return self._seconds

    @property
    def gold_loss(self) -> float | None:
        """The loss that the direction is the gradient of, where the present batch was scored along it."""
        return self._held_direction.loss if self._judged else None

    @property
    def _is_due(self) -> bool:
        """Whether this batch, or this iteration's buffer, is filtered."""
        ready = self.batches - 1 - self.warmup_batches
        return ready >= 0 and ready % self.every_n_batches == 0

    @property
    def _bound_keep(self) -> KeepRule:
        """The rule, which may compare with what the gold rows score along the present direction."""
        gold_scores = self._held_direction.gold_scores
        return self.keep if gold_scores is None else self.keep.bind(gold_scores)

    @contextmanager
    def _timed(self, pl_module: L.LightningModule) -> Iterator[None]:
        with stopwatch(pl_module, "score", already=self._seconds, log=self.unit == "buffer") as lap:
            yield
        self._seconds = lap.seconds

    def _takes_effect(self, selection: Selection) -> bool:
        return not self.dry_run and not (selection.survival == 0.0 and self.on_empty == "keep_all")

    def _conclude(self, trainer: L.Trainer, selection: Selection, own: slice, batch: Any) -> None:
        """Write down what was decided, and stop if it is time."""
        self._judged = True
        if self._audit is not None:
            self._audit.add(trainer.current_epoch, self.batches - 1, batch, selection.part(own))
        if self.dry_run:
            return
        reason = self.survival.take_in(selection.survival)
        if selection.survival == 0.0 and self.on_empty == "stop":
            reason = f"no {'row' if self.unit == 'batch' else 'episode'} survived"
        self._stop(trainer, reason)

    def _stop(self, trainer: L.Trainer, reason: str | None) -> None:
        if reason is not None:
            self.stopping_reason_message = reason
            trainer.should_stop = True
            rank_zero_info(f"{self.name}: training stops, {reason}.")

    # ---------------------------------------------------------------- after

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the audit file, stop if it is time; and tell who waits for rollouts that never come."""
        if self._audit is not None:
            self._audit.flush()
        self._stop(trainer, self.survival.end_epoch())
        silent = self.unit == "buffer" and not self._emitted and not trainer.should_stop
        remedy = (
            f"{type(pl_module).__name__} let an epoch pass without a rollout: add emit(self.trainer, self, "
            "'on_rollout_end', episodes) to its training_step, or use unit='batch'"
        )
        require(not silent, "unit", "buffer", remedy)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave no batch cut and no decision unwritten."""
        self._cut.undo()
        if self._audit is not None:
            self._audit.flush()

    @property
    def state_key(self) -> str:
        """Apart for each filter of a trainer."""
        return self._generate_state_key(name=self.name, unit=self.unit)

    def state_dict(self) -> dict[str, Any]:
        counts = {"batches": self.batches, "below": self.survival.below}
        return {**counts, "direction": self._held_direction.state_dict(), "scorer": self.scorer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches, self.survival.below = state_dict["batches"], state_dict["below"]
        self._restored = state_dict["direction"]
        self.scorer.load_state_dict(state_dict["scorer"])
