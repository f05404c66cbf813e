"""The direction of a filter in a running training, and how long it holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from ippo.callbacks.influence.gold_batches import GoldBatches
from ippo.distributed import for_checkpoint, placed_like, total
from ippo.errors import require
from ippo.influence import Direction, ValidationDirection
from ippo.influence.direction import mean_over_ranks, resolve
from ippo.influence.keep_like_gold import Gold
from ippo.influence.parameters import Subset, choose, scored, trainable

LookAtGold = Callable[[nn.Module, list[Any]], Gold]
"""See :func:`ippo.influence.keep_like_gold.look_at_gold`."""


class _Held(NamedTuple):
    """A computed direction, at which batch it was, the loss that it is the gradient of, what the gold rows score along
    it, and the mean score of that batch with its standard error."""

    batch: int
    direction: Mapping[str, Tensor]
    loss: float | None
    gold_scores: Tensor | None = None
    mean: float = 0.0
    error: float = 0.0


class HeldDirection:
    """A direction that is computed anew when it has been used for long enough, or when it no longer fits.

    Rows that are kept all push one way, and soon past the goal, where those that would correct oppose a direction of
    before. So it ends sooner when a batch scores lower along it than the batch that it was computed for, and when other
    parameters are trained. Where the gold rows' loss has not fallen from one direction to the next, by more than its
    error, the next one holds half as long, and twice as long again when it falls: a loss that goes up and down with the
    directions looks level at each of them. Rows that are others each time are not compared.

    Args:
        direction: a direction, bound to the training, or a mapping that never changes.
        every: how many batches a computed direction is used for, at most.
        parameters: which parameters count; no gradient is taken of the others.
        gold: what the direction reads, if it reads gold rows.
        look_at_gold: computes the direction of gold rows and scores them, for a keep rule that compares with them.
        may_renew: whether the weights may have moved since the last batch, as within an accumulation they have not.

    Raises:
        UsageError: if a direction that is made of the scored rows is to outlive them.
    """

    def __init__(
        self,
        direction: Direction | Mapping[str, Tensor],
        every: int = 1,
        parameters: Subset = None,
        gold: GoldBatches | None = None,
        look_at_gold: LookAtGold | None = None,
        may_renew: Callable[[], bool] = lambda: True,
    ) -> None:
        self.direction, self.every, self.parameters, self.gold = direction, every, parameters, gold
        self._look_at_gold, self._may_renew = look_at_gold, may_renew
        remedy = "the direction is made of the rows that are scored: use 1"
        require(every == 1 or not self.needs_buffer, "direction_every_n_batches", every, remedy)
        self._held: _Held | None = None
        self._length = every  # how many batches the present one is used for, at most
        self._losses: Tensor | None = None  # of the gold rows, when it was computed
        self._restored = False
        self._readings = 0  # of the gold rows, before this start

    @property
    def needs_buffer(self) -> bool:
        """Whether the direction is made of the rows that are scored."""
        return isinstance(self.direction, Direction) and self.direction.needs_buffer

    @property
    def loss(self) -> float | None:
        """The loss that the direction is the gradient of, where it was last computed for scores."""
        if self._held is not None:
            return self._held.loss
        return self.direction.mean_loss if isinstance(self.direction, Direction) else None

    @property
    def gold_scores(self) -> Tensor | None:
        """[m] what the gold rows score along the direction that was last computed, where a rule reads them."""
        return None if self._held is None else self._held.gold_scores

    def at(self, module: nn.Module, batch: int) -> Direction | Mapping[str, Tensor]:
        """For the scores of a batch, by its number: the direction itself, or what it was when last computed."""
        if isinstance(self.direction, Mapping) or (self.every == 1 and self._look_at_gold is None):
            return self.direction
        if self._restored and self._held is not None:  # a checkpoint is loaded to the CPU
            parameters, self._restored = trainable(module), False
            here = {name: placed_like(one, parameters.get(name, one)) for name, one in self._held.direction.items()}
            self._held = self._held._replace(direction=here)
        if self._held is None or self._is_over(self._held, module, batch):
            self._held = self._computed(module, batch)
            self._adapt_length()
        return self._held.direction

    def has_turned(self, scores: Tensor, batch: int) -> bool:
        """Whether this batch scores lower along the direction than the batch that it was computed for, all ranks
        together, by more than two standard errors of the difference. That direction is then given up, and :meth:`at`
        computes the next: one too many costs a pass of the gold rows, one that has turned costs right rows.

        Args:
            scores: [n] of this rank's rows along it.
            batch: the number of their batch.
        """
        if self._held is None or self.every == 1:
            return False
        mean, error = _mean_and_error(scores)
        if self._held.batch == batch:
            self._held = self._held._replace(mean=mean, error=error)
            return False
        turned = self._may_renew() and self._held.mean - mean > 2 * math.hypot(self._held.error, error)
        if turned:
            self._held = None
        return turned

    def check(self, module: nn.Module) -> None:
        """Compute the direction for nothing, so that a wrong one is told before work starts; then the gold rows go on
        where they were.

        Raises:
            UsageError: if it does not fit the module.
        """
        if not self.needs_buffer:
            # A direction may sample; a resumed run tries it once more and must draw the same.
            with isolate_rng():
                self._computed(module, 0)
        if self.gold is not None:
            self.gold.go_to(self._readings)

    def measure(self, module: nn.Module) -> float | None:
        """The loss that the direction is the gradient of at the module's present weights, computed for nothing."""
        if isinstance(self.direction, Direction) and not self.needs_buffer:
            before = 0 if self.gold is None else self.gold.readings
            with isolate_rng(), scored(module, self.parameters):
                resolve(self.direction, module)
            if self.gold is not None:
                self.gold.go_to(before)
            return self.direction.mean_loss
        return None

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart."""
        held: dict[str, Any] | None = None
        if self._held is not None:
            parts = {name: for_checkpoint(part) for name, part in self._held.direction.items()}
            held = {**self._held._asdict(), "direction": parts}
        readings = 0 if self.gold is None else self.gold.readings
        return {"held": held, "length": self._length, "losses": self._losses, "readings": readings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave; nothing, where it is empty."""
        if state:
            self._held = None if state["held"] is None else _Held(**state["held"])
            self._length, self._losses = min(state["length"], self.every), state["losses"]
            self._restored, self._readings = self._held is not None, state["readings"]

    def _is_over(self, held: _Held, module: nn.Module, batch: int) -> bool:
        others = choose(module, self.parameters) != held.direction.keys()  # some were frozen, or thawed
        return others or (batch - held.batch >= self._length and self._may_renew())

    def _computed(self, module: nn.Module, batch: int) -> _Held:
        direction = self.direction
        if self._look_at_gold is not None and isinstance(direction, ValidationDirection):
            gold = self._look_at_gold(module, list(direction.batches or []))
            direction.row_losses, direction.mean_loss = gold.losses, mean_over_ranks(gold.losses)
            return _Held(batch, gold.direction, direction.mean_loss, gold.scores)
        with scored(module, self.parameters):
            along = resolve(direction, module)
        return _Held(batch, along, direction.mean_loss if isinstance(direction, Direction) else None)

    def _adapt_length(self) -> None:
        """By the gold rows' losses, row by row, against those of the direction before."""
        losses, before = getattr(self.direction, "row_losses", None), self._losses
        others_each_time = self.gold is not None and self.gold.rows is not None
        if self.every == 1 or losses is None or others_each_time:
            return
        self._losses = losses
        if before is not None and len(before) == len(losses):
            mean, error = _mean_and_error(losses - before.to(losses))
            if mean < -error:
                self._length = min(self.every, 2 * self._length)
            elif (losses != before.to(losses)).any():  # else nothing has moved
                self._length = max(1, self._length // 2)


def _mean_and_error(scores: Tensor) -> tuple[float, float]:
    """Of all ranks' scores the mean and its standard error, which is infinite where there is but one."""
    finite = scores[scores.isfinite()].double()
    count, first, second = total(torch.stack([torch.ones_like(finite), finite, finite**2]).sum(1)).tolist()
    if count < 2:
        return 0.0, math.inf
    return first / count, math.sqrt(max(0.0, second / count - (first / count) ** 2) / (count - 1))
