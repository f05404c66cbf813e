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
from torch.nn.modules.batchnorm import _BatchNorm

from ippo.callbacks.influence.audit import Audit, RowId
from ippo.callbacks.influence.batch_rows import Select
from ippo.callbacks.influence.batch_selection import BatchSelection, Reduction
from ippo.callbacks.influence.buffers import DictBuffer, as_buffer, cut, weights_of
from ippo.callbacks.influence.curves import FilterCurves
from ippo.callbacks.influence.decisions import Decisions, OnEmpty
from ippo.callbacks.influence.default_scorer import default_scorer
from ippo.callbacks.influence.health import Health
from ippo.callbacks.influence.held_direction import DirectionHost, HeldDirection
from ippo.callbacks.influence.keep_by_gold import default_keep, gold_scorer
from ippo.callbacks.influence.scoring import Scoring, scored_module
from ippo.callbacks.influence.selecting import select_together, with_floor
from ippo.callbacks.influence.survival import SurvivalStop
from ippo.errors import require
from ippo.events import require_logging
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

    Without arguments it is the recipes' default, scores of the last block and uniform weights; :meth:`paper` is the
    paper's setting. Of several filters in one trainer each judges what those before it have kept, and their weights
    multiply.

    Args:
        scorer: what computes the scores; its ``parameters`` say which parameters of the module count. None takes
            :class:`ippo.influence.ExactScorer` of a language model's last block, and of all parameters of any other.
        direction: the gradient to agree with. None takes the module's gold solutions for a buffer, and for a batch
            its own mean gradient.
        keep: which episodes stay. None takes, of batches with gold rows of the same loss,
            :class:`ippo.influence.LikeGold`, which drops next to nothing where nothing is wrong, and else
            :class:`ippo.influence.PositiveScore`.
        weight: weights of those that stay; None is uniform.
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
        loss_reduction: of batches, what the training step makes of its rows' losses. Where several batches make one
            step, accumulated or of several ranks, a ``"mean"`` over few survivors is scaled down, so that every kept
            row counts the same; a ``"sum"`` is left alone.
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
        select: ``select(batch, kept)`` drops rows of a batch in place, for batches of a type of their own, and may
            return a function that puts them back.
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
        on_empty: OnEmpty = "skip",
        batch_size: int | None = None,
        losses: Callable[..., Any] | None = None,
        one_pass: bool = True,
        token_scores: bool = False,
        drop_tokens: bool = False,
        unit: Literal["buffer", "batch"] = "buffer",
        action: Literal["drop", "weight"] = "drop",
        loss_reduction: Reduction = "mean",
        every_n_batches: int = 1,
        warmup_batches: int = 0,
        direction_every_n_batches: int = 1,
        direction_rows: int | None = None,
        dry_run: bool = False,
        audit: str | Path | None = None,
        row_id: RowId = None,
        select: Select | None = None,
        name: str = "influence",
    ) -> None:
        for option, value, choices in (
            ("on_empty", on_empty, ("skip", "keep_all", "stop")),
            ("unit", unit, ("buffer", "batch")),
            ("action", action, ("drop", "weight")),
            ("loss_reduction", loss_reduction, ("mean", "sum")),
        ):
            require(value in choices, option, value, f"use {', '.join(choices[:-1])} or {choices[-1]}")
        for option, number, least in (
            ("batch_size", batch_size, 1),
            ("every_n_batches", every_n_batches, 1),
            ("direction_every_n_batches", direction_every_n_batches, 1),
            ("direction_rows", direction_rows, 1),
            ("warmup_batches", warmup_batches, 0),
        ):
            require(number is None or number >= least, option, number, f"use {least} or more")
        for option, wanted in (("token_scores", token_scores), ("drop_tokens", drop_tokens)):
            require(unit == "buffer" or not wanted, option, wanted, "rows of a batch have no tokens: use unit='buffer'")
        heard, found = unit == "buffer" or action == "weight", type(weight).__name__
        remedy = "rows that are dropped from a batch carry no weights: use action='weight'"
        require(heard or isinstance(weight, Uniform | None), "weight", found, remedy)
        self.scorer = scorer if scorer is not None else ExactScorer(parameters=1)
        self.keep = keep if keep is not None else PositiveScore()
        self._keep_by_default = keep is None
        self.weight = weight if weight is not None else Uniform()
        self.survival = SurvivalStop(min_survival, patience, by_epoch=unit == "batch")
        self.direction, self.losses, self.one_pass = direction, losses, one_pass
        self.token_scores, self.drop_tokens = token_scores, drop_tokens
        self.on_empty, self.batch_size, self.unit, self.action = on_empty, batch_size, unit, action
        self.every_n_batches, self.warmup_batches, self.loss_reduction = every_n_batches, warmup_batches, loss_reduction
        self.direction_every_n_batches, self.direction_rows = direction_every_n_batches, direction_rows
        self.dry_run, self.audit, self.row_id, self.select, self.name = dry_run, audit, row_id, select, name
        self._column = "score" if name == "influence" else f"score_{name}"  # of the episodes' extras
        self.batches = 0  # training batches seen
        self.applied: Selection | None = None  # to the present batch or its episodes, where anything was
        self._by_default = scorer is None
        self._scoring: Scoring  # known when training starts, as is the direction
        self._health: Health
        self._held_direction = HeldDirection({})
        self._restored: dict[str, Any] = {}  # its state in a checkpoint, until then
        self._decisions = Decisions(name, self.survival, on_empty, "row" if unit == "batch" else "episode")
        self._curves = FilterCurves(name)
        self._earlier: list[InfluenceFilterCallback] = []  # the trainer's filters before this one
        self._cut = BatchSelection()  # the first one's, for all
        self._floor = 1  # so many rows are left in a batch, where any are
        self._judged = False  # the present batch, or its episodes
        self._emitted = False
        self._began = self._seconds = 0.0  # of this batch: when it began, and what scoring has taken of it so far

    @classmethod
    def paper(cls, **options: Any) -> InfluenceFilterCallback:
        """The paper's setting: scores of all parameters and proportional weights, as ``--filter paper`` builds it.

        Args:
            options: all others.
        """
        return cls(**{"scorer": ExactScorer(), "keep": PositiveScore(), "weight": Proportional(), **options})

    # ---------------------------------------------------------------- before training

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse whatever can be told to be wrong before there is data."""
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        filters = [callback for callback in callbacks if isinstance(callback, InfluenceFilterCallback)]
        self._earlier = filters[: filters.index(self)]
        self._cut = self._earlier[0]._cut if self._earlier else BatchSelection()
        alike = all(other.action == self.action for other in self._earlier if other.unit == self.unit)
        require(alike, "action", self.action, "another filter has the other one: give both the same")
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
        self._decisions.why_stopped, self._emitted = None, False
        self.scorer = default_scorer(module) if self._by_default else self.scorer
        self._floor = 2 if any(isinstance(part, _BatchNorm) for part in pl_module.modules()) else 1
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
            folder = Path(trainer.default_root_dir) / self.audit
            self._decisions.audit = Audit(folder, self.name, self.row_id, self.batches)
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
        if self.unit == "batch":
            return episodes
        require_logging(pl_module)
        self._emitted = True
        if not self._is_due:
            return episodes
        buffer: Any = as_buffer(episodes)
        with self._timed(pl_module):
            buffer, scores = self._scoring.of_buffer(buffer, self.batches)
            before = weights_of(buffer, len(scores), any(other._reweighed for other in self._earlier))
            selection, own = select_together(scores, episodes, self._bound_keep, self.weight, before)
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
        if not self._earlier:
            self._cut.begin(trainer)
        if self.unit == "buffer" or not self._is_due or self._cut.over:
            return
        weigh = self.action == "weight"
        with self._timed(pl_module):
            scores = self._scoring.of_batches([batch], self.batches)
            while self._held_direction.has_turned(scores, self.batches):  # once: the next direction is of this batch
                scores = self._scoring.of_batches([batch], self.batches)
            before = self._cut.before(batch, scores, weigh, self.select is None)
            selection, own = select_together(scores, batch, self._bound_keep, self.weight, before)
            selection = selection if weigh else with_floor(selection, own, self._floor)
        self._curves.batch(pl_module, selection, self._held_direction.loss, self.batches - 1)
        self._health.take_in(selection.scores, selection.survival, self._held_direction.loss)
        self._conclude(trainer, selection, own, batch)
        if self._takes_effect(selection):
            self.applied = selection
            self._cut.make(pl_module, batch, selection, own, weigh, self.select, self.loss_reduction)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Let every kept row count the same in a step that is made of several batches."""
        if not self._earlier:
            self._cut.scale_loss(trainer, loss)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """The other half of that, before gradients are clipped."""
        if not self._earlier:
            self._cut.scale_step(trainer, optimizer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Say what scoring took of the step, and make the batch whole when all have seen it as the step did."""
        if not self._earlier:
            self._cut.undo_after(pl_module)
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
    def stopping_reason_message(self) -> str | None:
        """Why this filter ended the training, where it did."""
        return self._decisions.why_stopped

    @property
    def _reweighed(self) -> bool:
        """Whether rows carry weights of its own."""
        return self.applied is not None and (self.action == "weight" or not isinstance(self.weight, Uniform))

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
        self._judged = True
        self._decisions.take_in(trainer, self.batches - 1, batch, selection, own, not self.dry_run)

    # ---------------------------------------------------------------- after

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the audit file, stop if it is time; and tell who waits for rollouts that never come."""
        self._cut.undo()
        self._decisions.end_epoch(trainer)
        self._curves.end_epoch(pl_module, lambda: self._latest_gold_loss(trainer, pl_module))
        silent = self.unit == "buffer" and not self._emitted and not trainer.should_stop
        remedy = (
            f"{type(pl_module).__name__} let an epoch pass without a rollout: add emit(self.trainer, self, "
            "'on_rollout_end', episodes) to its training_step, or use unit='batch'"
        )
        require(not silent, "unit", "buffer", remedy)

    def _latest_gold_loss(self, trainer: L.Trainer, pl_module: L.LightningModule) -> float | None:
        """After an epoch without a score: as last known, or computed for who monitors it."""
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if any(getattr(one, "monitor", None) == f"{self.name}/gold_loss" for one in callbacks):
            return self._held_direction.measure(scored_module(pl_module))
        return self._held_direction.loss

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave no batch cut and no decision unwritten."""
        self._cut.undo()
        self._decisions.flush()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """What a checkpoint counts as done is written down, whatever happens next."""
        self._decisions.flush()

    @property
    def state_key(self) -> str:
        """Apart for each filter of a trainer."""
        return self._generate_state_key(name=self.name, unit=self.unit)

    def state_dict(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"survival": self.survival, "direction": self._held_direction, "scorer": self.scorer}
        return {"batches": self.batches, **{name: part.state_dict() for name, part in parts.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches, self._restored = state_dict["batches"], state_dict["direction"]
        self.survival.load_state_dict(state_dict["survival"])
        self.scorer.load_state_dict(state_dict["scorer"])
