"""Numbers that are not finite: counted, told, and after too many a stop; and warnings before it comes to that."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import chain
from typing import Any

import lightning as L

from ippo.distributed import is_sharded, largest, total_of
from ippo.errors import require
from ippo.ppo.guards import Limits, NumericWarning, complaints, culprits, excerpt
from ippo.rollout.episodes import Episodes


class NumericGuard(L.Callback):
    """Watches the numbers of a :class:`ippo.PPOModule` and tells what is wrong, why, and what to change.

    An episode with a number that is not finite (reward, log-probability, value, advantage, score) takes no part in the
    update, and an optimizer step whose gradient is not finite is not taken. Both are the module's and the filter's own
    doing, with or without this callback; it names the episodes, logs how many there were (``guard/episodes``,
    ``guard/skipped_steps``), and ends the training when it happens in too many iterations in a row. Curves that a
    healthy run would not show are told once each (:func:`ippo.ppo.guards.complaints`), when they have been so for a
    while: a critic that has just begun is worse than none.

    Args:
        max_bad_steps: so many iterations in a row with such an episode or step end the training; None never.
        limits: see :class:`ippo.ppo.guards.Limits`.
        patience: a curve is told after so many iterations in a row beyond its limit.
        texts: episodes named in one warning, at most.
    """

    def __init__(
        self, max_bad_steps: int | None = 5, limits: Limits = Limits(), patience: int = 3, texts: int = 3
    ) -> None:
        enough = max_bad_steps is None or max_bad_steps >= 1
        require(enough, "max_bad_steps", max_bad_steps, "use at least 1, or null to go on whatever happens")
        require(patience >= 1, "patience", patience, "use at least 1")
        require(texts >= 0, "texts", texts, "use 0 or more")
        self.max_bad_steps, self.limits, self.patience, self.texts = max_bad_steps, limits, patience, texts
        self.bad_in_a_row = 0
        self.first_entropy: float | None = None
        self.stopping_reason_message: str | None = None
        self._episodes = self._steps = 0  # of this iteration and rank, that were skipped
        self._beyond: Counter[str] = Counter()  # iterations in a row, by curve
        self._told: set[str] = set()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stopping_reason_message = None

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self._episodes = self._steps = 0

    def on_update_start(self, trainer: L.Trainer, pl_module: L.LightningModule, episodes: Episodes) -> None:
        """Name the episodes that were left out for a number that is not finite."""
        for part in episodes.dropped:
            rows = [row for row, reason in enumerate(part.extras["reason"]) if "not finite" in reason]
            if rows:
                self._episodes += len(rows)
                texts = [excerpt(part.prompts[row], part.responses[row]) for row in rows]
                self._warn(trainer, f"{part.extras['reason'][rows[0]]}; left out", texts)

    def on_step_skipped(self, trainer: L.Trainer, pl_module: L.LightningModule, minibatch: Episodes) -> None:
        """Find the episodes that have made the gradient what it is."""
        self._steps += 1
        module: Any = pl_module
        parameters = list(chain(*module.model.parameter_groups().values()))
        texts = []
        if not any(map(is_sharded, parameters)):  # else a pass of this rank alone would wait for the others
            texts = culprits(lambda one: module.loss(one, defaultdict(float)), parameters, minibatch)
        alone = "" if texts else " (no episode of this rank by itself: lower the learning rate, or use more precision)"
        self._warn(trainer, f"a gradient is not finite; step skipped{alone}", texts)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Count, complain, and stop if it is time; all ranks alike."""
        episodes, steps = total_of(self._episodes, pl_module.device), largest(self._steps, pl_module.device)
        pl_module.log_dict({"guard/episodes": float(episodes), "guard/skipped_steps": float(steps)})
        self.bad_in_a_row = self.bad_in_a_row + 1 if episodes or steps else 0
        if self.max_bad_steps is not None and self.bad_in_a_row >= self.max_bad_steps:
            self.stopping_reason_message = f"numbers that are not finite, {self.bad_in_a_row} iterations in a row"
            trainer.should_stop = True
            if trainer.is_global_zero:
                self._warn(trainer, f"training stops, {self.stopping_reason_message}")
        curves = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if self.first_entropy is None:
            self.first_entropy = curves.get("ppo/entropy")
        grouped = getattr(getattr(pl_module, "ppo", None), "advantage", "gae") != "gae"
        found = complaints(curves, self.first_entropy or 0.0, grouped, self.limits)
        self._beyond = Counter({name: self._beyond[name] + 1 for name in found})
        for name, complaint in found.items():
            if self._beyond[name] == self.patience and name not in self._told and trainer.is_global_zero:
                self._told.add(name)
                self._warn(trainer, f"{complaint} ({self.patience} iterations in a row)")

    def _warn(self, trainer: L.Trainer, what: str, texts: Sequence[str] = ()) -> None:
        shown = [f"\n    {text}" for text in texts[: self.texts]]
        more = [f"\n    and {len(texts) - len(shown)} more"] if len(texts) > len(shown) else []
        warnings.warn("".join([f"iteration {trainer.current_epoch}: {what}", *shown, *more]), NumericWarning, 2)

    def state_dict(self) -> dict[str, Any]:
        return {"bad_in_a_row": self.bad_in_a_row, "first_entropy": self.first_entropy}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.bad_in_a_row, self.first_entropy = state_dict["bad_in_a_row"], state_dict["first_entropy"]
