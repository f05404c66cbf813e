"""What a filter does in a running training, whatever it filters."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from ippo.callbacks.influence.audit import Audit
from ippo.callbacks.influence.curves import FilterCurves
from ippo.callbacks.influence.decisions import Decisions
from ippo.callbacks.influence.gold_batches import DirectionHost
from ippo.callbacks.influence.held_direction import HeldDirection
from ippo.callbacks.influence.keep_by_gold import gold_scorer
from ippo.callbacks.influence.options import FilterOptions
from ippo.callbacks.influence.scored import Scored
from ippo.callbacks.influence.scoring import Scoring, scored_module
from ippo.callbacks.influence.selecting import select_together
from ippo.callbacks.influence.survival import SurvivalStop
from ippo.events import emit
from ippo.influence import Direction, Selection, Uniform
from ippo.influence.parameters import choose, trainable
from ippo.ppo.logprobs import LogprobPass
from ippo.ppo.requirements import require_strategy
from ippo.ppo.stopwatch import stopwatch


class Unit:
    """One filter's unit of work: ``BufferUnit`` says what happens to a rollout buffer, ``BatchUnit`` what happens to a
    batch. Here is what they share, and each hook as the one that has no use for it leaves it.

    Args:
        options: the filter's. What is left open there is decided when training starts.
        survival: when too few survive for too long.

    Attributes:
        batches: training batches seen, the present one among them.
        applied: the selection on the present batch or its episodes, where one took effect.
        scored: whether it was scored at all.
        seconds: what scoring has taken of the present batch so far.
        earlier: of the trainer's filters with the same unit those before this one.
        direction, scoring: known when training starts.
    """

    rows = "episode"
    direction: HeldDirection
    scoring: Scoring

    def __init__(self, options: FilterOptions, survival: SurvivalStop) -> None:
        self.options = options
        self.decisions = Decisions(options, survival, self.rows)
        self.curves = FilterCurves(options.name)
        self.direction = HeldDirection({})
        self.earlier: list[Any] = []
        self.applied: Selection | None = None
        self.batches, self.scored, self.seconds, self._began = 0, False, 0.0, 0.0

    # ---------------------------------------------------------------- before training

    def setup(self, trainer: L.Trainer, module: Any, earlier: list[Any]) -> None:
        """Refuse what can be told to be wrong before there is data.

        Args:
            trainer, module: of the fit that begins.
            earlier: see above.
        """
        self.trainer, self.module, self.earlier = trainer, module, earlier
        require_strategy(trainer.strategy)

    def default_direction(self) -> Direction:
        """What the scores are held against where nothing was given."""
        raise NotImplementedError

    def start(self, batches: int, direction_state: dict[str, Any]) -> None:
        """Decide what was left open, and try the direction, so that a wrong one is told before the first rollout.

        Args:
            batches: training batches that were seen before.
            direction_state: of the direction, where a checkpoint has it.
        """
        self.batches, options, trainer, module = batches, self.options, self.trainer, self.module
        policy = scored_module(module)
        host = DirectionHost(trainer, module, options.losses, options.direction_rows)
        direction = self.default_direction() if options.direction is None else options.direction
        if isinstance(direction, Direction):
            direction = direction.bind(host)
        scorer, self.keep, self.weight = options.decide(policy, direction)
        self.direction = HeldDirection(
            direction,
            options.direction_every_n_batches,
            scorer.parameters,
            host.gold,
            gold_scorer(self.keep, direction, options.losses, scorer),
            lambda: trainer.fit_loop.batch_idx % trainer.accumulate_grad_batches == 0,
        )
        self.direction.load_state_dict(direction_state)
        self.scoring = Scoring(module, scorer, self.direction, options)
        self.direction.check(policy)
        self.decisions.begin(self._audit())
        parameters = trainable(policy)
        chosen = sum(parameters[name].numel() for name in choose(policy, scorer.parameters))
        size = sum(map(torch.numel, parameters.values()))
        rank_zero_info(
            f"{options.name}: rows score by {chosen:,} of the {size:,} parameters of {type(policy).__name__}."
        )

    # ---------------------------------------------------------------- the hooks that one of the units answers

    def begin_batch(self, batch: Any, batches: int) -> None:
        """A training batch is there; ``batches`` counts it."""
        self.batches, self.applied, self.scored = batches, None, False
        self.seconds, self._began = 0.0, time.perf_counter()

    def on_logprob_pass(self, look: LogprobPass) -> LogprobPass:
        """Responses on their way to becoming episodes."""
        return look

    def on_rollout_end(self, episodes: Any) -> Any:
        """A rollout buffer."""
        return episodes

    def on_before_backward(self, loss: Tensor) -> None:
        """The module's own loss is there."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Its gradients are there."""

    def end_batch(self) -> None:
        """The module's step is done."""

    def end_epoch(self) -> None:
        """Write the audit file, and stop if it is time."""
        self.decisions.end_epoch(self.trainer)
        self.curves.end_epoch(self.module, self._latest_gold_loss)

    def abandon(self) -> None:
        """Leave no batch changed and no decision unwritten, whatever has happened."""
        self.decisions.flush()

    # ---------------------------------------------------------------- a selection

    @property
    def is_due(self) -> bool:
        """Whether the present batch, or its buffer, is filtered."""
        return self.options.is_due(self.batches)

    @property
    def reweighs(self) -> bool:
        """Whether rows carry weights of its own."""
        return self.applied is not None and (self.options.weighs or not isinstance(self.weight, Uniform))

    @property
    def seconds_of_batch(self) -> float:
        """What the present batch has taken so far, scoring and step."""
        return time.perf_counter() - self._began

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Scoring, in seconds."""
        with stopwatch(self.module, "score", already=self.seconds, log=self.options.of_buffers) as lap:
            yield
        self.seconds = lap.seconds

    def select(
        self, scores: Tensor, rows: Any, before: Tensor | None, features: Tensor | None = None
    ) -> tuple[Selection, slice]:
        """What becomes of the rows of all ranks, and where this rank's are among them.

        Args:
            scores: [n] of this rank's rows.
            rows: the rows.
            before: [n] the weights that they come with; None for 1 each.
            features: [n, d] of this rank's rows, where the keep rule reads them and the rows bring none.
        """
        gold_scores = self.direction.gold_scores  # along the present direction, where the rule compares with them
        keep = self.keep if gold_scores is None else self.keep.bind(gold_scores)
        return select_together(scores, rows, keep, self.weight, before, features)

    def takes_effect(self, selection: Selection, own: slice, rows: Any) -> bool:
        """Tell of a selection, write it down, and stop if it is time; whether it is to be applied."""
        self.scored = True
        emit(self.trainer, self.module, "on_scored", Scored(self.options.name, self.options.unit, rows, selection, own))
        if self.decisions.take_in(self.trainer, self.batches - 1, rows, selection, own):
            self.applied = selection
        return self.applied is selection

    def _audit(self) -> Audit | None:
        if self.options.audit is None:
            return None
        folder = Path(self.trainer.default_root_dir) / self.options.audit
        return Audit(folder, self.options.name, self.options.row_id, self.batches)

    def _latest_gold_loss(self) -> float | None:
        """After an epoch without a score: as last known, or computed for who monitors it."""
        callbacks: list[L.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        if any(getattr(one, "monitor", None) == f"{self.options.name}/gold_loss" for one in callbacks):
            return self.direction.measure(scored_module(self.module))
        return self.direction.loss
