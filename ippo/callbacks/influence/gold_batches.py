"""Where a filter's gold rows come from in a running Lightning training, and which of them are read each time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from ippo.callbacks.influence.batch_rows import count_rows
from ippo.errors import UsageError, require
from ippo.influence import Losses, ValidationDirection
from ippo.rollout.sequences import Sequences


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
