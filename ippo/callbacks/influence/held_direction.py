"""The direction of a filter in a running Lightning training: where its gold rows come from, and how long it holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from ippo.callbacks.influence.batch_rows import count_rows
from ippo.distributed import total
from ippo.errors import UsageError, require
from ippo.influence import Direction, Losses, ValidationDirection
from ippo.influence.direction import resolve
from ippo.influence.parameters import Subset, choose, scored, trainable
from ippo.rollout.sequences import Sequences

GoldScores = Callable[[nn.Module, list[Any], dict[str, Tensor]], Tensor]
"""``gold_scores(module, batches, direction) -> [m]``: see :func:`ippo.influence.keep_like_gold.gold_scores`."""


class _Held(NamedTuple):
    """A computed direction, at which batch it was, the loss that it is the gradient of, what the gold rows score along
    it, and the mean score of that batch with its standard error."""

    batch: int
    direction: dict[str, Tensor]
    loss: float | None
    gold_scores: Tensor | None = None
    mean: float = 0.0
    error: float = 0.0


class HeldDirection:
    """A direction that is computed anew when it has been used for long enough, or when it no longer fits.

    Rows that are kept all push one way, and soon past the goal, where those that would correct oppose a direction of
    before. So it ends sooner when a batch scores lower along it than the batch that it was computed for, and when other
    parameters are trained.

    Args:
        direction: a direction, bound to the training, or a mapping that never changes.
        every: how many batches a computed direction is used for, at most.
        parameters: which parameters count; no gradient is taken of the others.
        gold: what the direction reads, if it reads gold rows.
        gold_scores: scores the gold rows each time as well, for a keep rule that compares with them.
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
        gold_scores: GoldScores | None = None,
        may_renew: Callable[[], bool] = lambda: True,
    ) -> None:
        self.direction, self.every, self.parameters, self.gold = direction, every, parameters, gold
        self._score_gold, self._may_renew = gold_scores, may_renew
        remedy = "the direction is made of the rows that are scored: use 1"
        require(every == 1 or not self.needs_buffer, "direction_every_n_batches", every, remedy)
        self._held: _Held | None = None
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
        if isinstance(self.direction, Mapping) or (self.every == 1 and self._score_gold is None):
            return self.direction
        if self._restored and self._held is not None:  # a checkpoint is loaded to the CPU
            parameters, self._restored = trainable(module), False
            here = {name: one.to(parameters.get(name, one)) for name, one in self._held.direction.items()}
            self._held = self._held._replace(direction=here)
        if self._held is None or self._is_over(self._held, module, batch):
            self._held = self._computed(module, batch)
        return self._held.direction

    def has_turned(self, scores: Tensor, batch: int) -> bool:
        """Whether this batch scores lower along the direction than the batch that it was computed for, all ranks
        together, by more than the standard error of the difference. That direction is then given up, and :meth:`at`
        computes the next: one too many costs a pass of the gold rows, one that has turned costs right rows.

        Args:
            scores: [n] of this rank's rows along it.
            batch: the number of their batch.
        """
        if self._held is None:
            return False
        mean, error = _mean_and_error(scores)
        if self._held.batch == batch:
            self._held = self._held._replace(mean=mean, error=error)
            return False
        turned = self._may_renew() and self._held.mean - mean > math.hypot(self._held.error, error)
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
        held = {} if self._held is None else self._held._asdict()
        return {**held, "readings": 0 if self.gold is None else self.gold.readings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        held = {key: value for key, value in state.items() if key != "readings"}
        self._held = _Held(**held) if held else None
        self._restored, self._readings = bool(held), state.get("readings", 0)

    def _is_over(self, held: _Held, module: nn.Module, batch: int) -> bool:
        others = choose(module, self.parameters) != held.direction.keys()  # some were frozen, or thawed
        return others or (batch - held.batch >= self.every and self._may_renew())

    def _computed(self, module: nn.Module, batch: int) -> _Held:
        direction, score_gold = self.direction, self._score_gold
        if score_gold is None or not isinstance(direction, ValidationDirection):
            with scored(module, self.parameters):
                along = dict(resolve(direction, module))
            return _Held(batch, along, direction.mean_loss if isinstance(direction, Direction) else None)
        rows = list(direction.batches or [])  # the same ones twice
        direction = ValidationDirection(rows, direction.loss)
        with scored(module, self.parameters):
            along = dict(resolve(direction, module))
            return _Held(batch, along, direction.mean_loss, score_gold(module, rows, along))


def _mean_and_error(scores: Tensor) -> tuple[float, float]:
    """Of all ranks' scores the mean and its standard error, which is infinite where there is but one."""
    finite = scores[scores.isfinite()].double()
    count, first, second = total(torch.stack([torch.ones_like(finite), finite, finite**2]).sum(1)).tolist()
    if count < 2:
        return 0.0, math.inf
    return first / count, math.sqrt(max(0.0, second / count - (first / count) ** 2) / (count - 1))


class DirectionHost:
    """A LightningModule and its trainer, as :meth:`ippo.influence.Direction.bind` sees them.

    Whatever is not said here is asked of the module.

    Args:
        trainer, module: of the running fit.
        losses: one loss a row, where the user gave it.
        rows: at most about so many gold rows are read each time; None for all.
    """

    def __init__(self, trainer: L.Trainer, module: Any, losses: Losses | None, rows: int | None) -> None:
        self.trainer, self.module, self.losses, self.rows = trainer, module, losses, rows
        self.gold: GoldBatches | None = None  # once it was asked for

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def prepare_batches(self, batches: Iterable[Any]) -> Iterable[Any]:
        """Gold batches as the training would get them."""
        self.gold = GoldBatches(self.trainer, batches, self.rows)
        return self.gold

    def validation_direction(self) -> ValidationDirection:
        """The module's own gold examples; where it names none, the trainer's validation data.

        Raises:
            UsageError: if there is neither.
        """
        if hasattr(self.module, "validation_direction"):
            own: ValidationDirection = self.module.validation_direction()
            return ValidationDirection(self.prepare_batches(own.batches or []), own.loss)
        loaders: Any = self.trainer.val_dataloaders
        if not loaders or self.losses is None:
            remedy = (
                f"{type(self.module).__name__} has no validation_direction() and the trainer no validation data: "
                "pass ValidationDirection(batches, loss)"
            )
            raise UsageError("direction", "ValidationDirection()", remedy)
        several = isinstance(loaders, list | tuple | dict)
        require(not several, "direction", "ValidationDirection()", "there are several validation loaders: pass one")
        return ValidationDirection(self.prepare_batches(loaders), self.losses)


class GoldBatches:
    """Batches on the training's device, of which each reading takes some, going on where the last one stopped.

    Reading them draws nothing from the training's random generators.

    Args:
        trainer: knows where batches belong and in which precision.
        batches: a DataLoader or any other iterable that can be read again.
        rows: of a reading: of tokenised sequences exactly so many, of other batches it ends with the one that makes it
            so many; None for one whole pass.
    """

    def __init__(self, trainer: L.Trainer, batches: Iterable[Any], rows: int | None) -> None:
        self.trainer, self.batches, self.rows = trainer, batches, rows
        self._stream: Iterator[Any] | None = None
        self._rest: Sequences | None = None  # of a batch that was longer than a reading
        self.readings = 0

    def go_to(self, readings: int) -> None:
        """Be where so many readings, from the first row on, lead to."""
        self._stream, self._rest, self.readings = None, None, 0
        for _ in range(0 if self.rows is None else readings):
            for _ in self:
                pass
        self.readings = readings

    def __iter__(self) -> Iterator[Any]:
        self.readings += 1
        if self.rows is None:
            self._stream = None
        rows, begun = 0, 0
        while self.rows is None or rows < self.rows:
            batch, self._rest = self._rest, None
            if batch is None:
                if self._stream is None:
                    if begun == 1:  # a pass of its own is the most that a reading takes
                        return
                    begun += 1
                batch = self._next()
            if batch is None:
                continue
            if self.rows is not None:
                batch, self._rest = _parted(batch, self.rows - rows)
                rows += self._count(batch)
            yield batch

    def _count(self, batch: Any) -> int:
        """The rows of a batch; of a type whose rows nobody can count, as many as its loader puts into one."""
        try:
            return count_rows(batch)
        except UsageError:
            size = getattr(self.batches, "batch_size", None) or 0
            remedy = "its rows are not known: pass a DataLoader with a batch_size, or direction_rows=None"
            require(size > 0, "direction", f"of a {type(batch).__name__}", remedy)
            return int(size)

    def _next(self) -> Any:
        """The stream's next batch; None at its end, after which it starts anew."""
        with isolate_rng():  # a loader draws when it starts, a shuffling one when it gives its first batch
            self._stream = iter(self.batches) if self._stream is None else self._stream
            batch = next(self._stream, None)
        if batch is None:
            self._stream = None
            return None
        return self._placed(batch)

    def _placed(self, batch: Any) -> Any:
        """On the device and in the precision of training batches; what moves itself keeps its own types."""
        if isinstance(batch, Tensor) or not hasattr(batch, "to"):
            batch = self.trainer.precision_plugin.convert_input(batch)
        return self.trainer.strategy.batch_to_device(batch)


def _parted(batch: Any, rows: int) -> tuple[Any, Sequences | None]:
    """The first rows of a batch, and the others; a batch that is none of sequences stays whole."""
    if not isinstance(batch, Sequences) or len(batch) <= rows:
        return batch, None
    places = torch.arange(len(batch))
    return batch.rows(places[:rows]).trim(), batch.rows(places[rows:]).trim()
