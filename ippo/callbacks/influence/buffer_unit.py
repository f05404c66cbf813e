"""What happens to a rollout buffer: it is scored, and what opposes the direction goes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightning as L

from ippo.callbacks.influence.buffers import DictBuffer, applied, as_buffer, weights_of
from ippo.callbacks.influence.unit import Unit
from ippo.errors import require
from ippo.events import require_logging
from ippo.influence import Direction, ValidationDirection
from ippo.influence.directions import without_adam
from ippo.models.hidden import middle_layer
from ippo.ppo.gold_style import StyleWarning
from ippo.ppo.logprobs import LogprobPass
from ippo.rollout.episodes import Episodes
from ippo.sft import demonstration_loss


class BufferUnit(Unit):
    """Filters the buffers that the module emits inside its ``training_step``."""

    def setup(self, trainer: L.Trainer, module: Any, earlier: list[Any]) -> None:
        """See :meth:`Unit.setup`."""
        super().setup(trainer, module, earlier)
        has = self.options.losses is not None or hasattr(module, "policy_losses")
        require(has, "losses", None, "pass losses(module, buffer) -> [n], one loss a row")

    def default_direction(self) -> Direction:
        """The module's gold solutions."""
        return ValidationDirection()

    def start(self, batches: int, direction_state: dict[str, Any]) -> None:
        """See :meth:`Unit.start`."""
        super().start(batches, direction_state)
        if "features" in self.keep.reads and hasattr(self.module, "objective"):  # other modules' buffers bring them
            middle_layer(self.scoring.policy)
        self._emitted = False
        of_solutions = getattr(without_adam(self.direction.direction), "loss", None) is demonstration_loss
        self._style = StyleWarning(self.options.name) if of_solutions else None

    def on_logprob_pass(self, look: LogprobPass) -> LogprobPass:
        """Take the old log-probabilities in forward mode: with them come their jvps, and from those the scores."""
        if not self.is_due or look.logprobs is not None or self.scoring.route.way != "one pass":
            return look
        with self.timed():
            return self.scoring.with_jvps(look, self.batches)

    def on_rollout_end(self, episodes: Any) -> Any:
        """Score, keep, weigh; returns the survivors, in the type that came."""
        require_logging(self.module)
        self._emitted = True
        if not self.is_due:
            return episodes
        buffer: Any = as_buffer(episodes)
        with self.timed():
            buffer, scores = self.scoring.of_buffer(buffer, self.batches)
            before = weights_of(buffer, len(scores), needed=any(one.reweighs for one in self.earlier))
            features = self.scoring.features(buffer) if "features" in self.keep.reads else None
            selection, own = self.select(scores, episodes, before, features)
        self.curves.rollout(self.module, selection, self.direction.loss, episodes, self.batches - 1)
        effect = self.takes_effect(selection, own, episodes)
        if isinstance(buffer, Episodes):
            if self._style is not None and self.direction.loss is not None:
                self._style.look_at(self.direction.loss, buffer)
            if effect and self.options.drop_tokens:
                buffer = self.scoring.silenced(buffer)
            buffer = buffer.with_extras(**{self._column: selection.scores[own].tolist()})
            buffer = replace(buffer, logprob_jvps=None)  # the next filter has a direction of its own
        if effect:
            buffer = applied(buffer, selection, own, self.options.weighs)
        return buffer.columns if isinstance(buffer, DictBuffer) else buffer

    def end_batch(self) -> None:
        """Say what scoring took of the iteration."""
        if self.seconds:
            self.module.log(f"{self.options.name}/cost", self.seconds / self.seconds_of_batch)

    def end_epoch(self) -> None:
        """See :meth:`Unit.end_epoch`; and tell who waits for rollouts that never come."""
        super().end_epoch()
        remedy = (
            f"{type(self.module).__name__} let an epoch pass without a rollout: add emit(self.trainer, self, "
            "'on_rollout_end', episodes) to its training_step, or use unit='batch'"
        )
        require(self._emitted or self.trainer.should_stop, "unit", "buffer", remedy)

    @property
    def _column(self) -> str:
        """What the scores are called among the episodes' extras."""
        name = self.options.name
        return "score" if name == "influence" else f"score_{name}"
