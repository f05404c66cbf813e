"""I-PPO as a callback: score every episode, drop those that point the other way, reweight the rest, stop in time."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import Tensor

from ippo.callbacks.influence.batch_unit import BatchUnit
from ippo.callbacks.influence.buffer_unit import BufferUnit
from ippo.callbacks.influence.options import FilterOptions
from ippo.callbacks.influence.survival import SurvivalStop
from ippo.callbacks.influence.unit import Unit
from ippo.errors import require
from ippo.influence import ExactScorer, KeepRule, PositiveScore, Proportional, Scorer, Selection, WeightRule
from ippo.ppo.logprobs import LogprobPass


class InfluenceFilterCallback(FilterOptions, L.Callback):
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

    Its arguments are those of :class:`ippo.callbacks.influence.options.FilterOptions`.

    Raises:
        UsageError: if an option is out of range; at the start of training, if the direction does not fit the module.
    """

    scorer: Scorer  # from the start on, as are the rules: what was given, or what stands in for it
    keep: KeepRule
    weight: WeightRule

    def __post_init__(self) -> None:
        super().__post_init__()
        self.batches = 0  # training batches seen
        self.survival = SurvivalStop(self.min_survival, self.patience, by_epoch=not self.of_buffers)
        self._restored: dict[str, Any] = {}  # the direction in a checkpoint, until training starts
        self._unit: Unit = (BufferUnit if self.of_buffers else BatchUnit)(self, self.survival)

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
        filters = [one for one in callbacks if isinstance(one, InfluenceFilterCallback) and one.unit == self.unit]
        earlier = filters[: filters.index(self)]
        alike = all(other.action == self.action for other in earlier)
        require(alike, "action", self.action, "another filter has the other one: give both the same")
        self._unit.setup(trainer, pl_module, [other._unit for other in earlier])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Decide how rows are scored, and try the direction, so that a wrong one is told before the first rollout."""
        self._unit.start(self.batches, self._restored)

    # ---------------------------------------------------------------- a batch, and what its step rolls out

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """``unit="batch"``: let the rows that oppose the direction leave the batch, before the module's own step."""
        self.batches += 1
        self._unit.begin_batch(batch, self.batches)

    def on_logprob_pass(self, trainer: L.Trainer, pl_module: L.LightningModule, look: LogprobPass) -> LogprobPass:
        """``unit="buffer"``: where that can be, take the old log-probabilities and the scores in one pass."""
        return self._unit.on_logprob_pass(look)

    def on_rollout_end(self, trainer: L.Trainer, pl_module: L.LightningModule, episodes: Any) -> Any:
        """``unit="buffer"``: score, keep, weigh; returns the survivors, in the type that came."""
        return self._unit.on_rollout_end(episodes)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """``unit="batch"``: let every kept row count the same in a step that is made of several batches."""
        self._unit.on_before_backward(loss)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """``unit="batch"``: the other half of that, before gradients are clipped."""
        self._unit.on_before_optimizer_step(optimizer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Say what scoring took of the step, and make the batch whole when all have seen it as the step did."""
        self._unit.end_batch()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the audit file, stop if it is time; and tell who waits for rollouts that never come."""
        self._unit.end_epoch()

    # ---------------------------------------------------------------- what others ask for

    @property
    def applied(self) -> Selection | None:
        """The selection on the present batch or its episodes, where one took effect."""
        return self._unit.applied

    @property
    def seconds(self) -> float:
        """What scoring has taken of the present batch."""
        return self._unit.seconds

    @property
    def gold_loss(self) -> float | None:
        """The loss that the direction is the gradient of, where the present batch was scored along it."""
        return self._unit.direction.loss if self._unit.scored else None

    @property
    def stopping_reason_message(self) -> str | None:
        """Why this filter ended the training, where it did."""
        return self._unit.decisions.why_stopped

    # ---------------------------------------------------------------- interrupted, saved and resumed

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave no batch changed and no decision unwritten."""
        self._unit.abandon()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """What a checkpoint counts as done is written down, whatever happens next."""
        self._unit.decisions.flush()

    @property
    def state_key(self) -> str:
        """Apart for each filter of a trainer."""
        return self._generate_state_key(name=self.name, unit=self.unit)

    def state_dict(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"survival": self.survival, "direction": self._unit.direction, "scorer": self.scorer}
        parts["keep"] = self.keep
        return {"batches": self.batches, **{name: part.state_dict() for name, part in parts.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches, self._restored = state_dict["batches"], state_dict["direction"]
        self.survival.load_state_dict(state_dict["survival"])
        self.scorer.load_state_dict(state_dict["scorer"])
        self.keep.load_state_dict(state_dict.get("keep", {}))  # of a checkpoint from before rules learned anything
