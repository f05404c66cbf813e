"""What happens to a batch: the rows that oppose the direction leave it before the module's step, and are back after."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ippo.callbacks.influence.batch_selection import BatchSelection
from ippo.callbacks.influence.health import Health
from ippo.callbacks.influence.options import FilterOptions
from ippo.callbacks.influence.selecting import with_floor
from ippo.callbacks.influence.survival import SurvivalStop
from ippo.callbacks.influence.unit import Unit
from ippo.errors import require
from ippo.influence import BufferDirection, Direction


class BatchUnit(Unit):
    """Filters the batches of any LightningModule, in place. Of several such filters the first begins and ends what all
    of them do to the present batch.

    Attributes:
        changes: what was done to it.
    """

    rows = "row"

    def __init__(self, options: FilterOptions, survival: SurvivalStop) -> None:
        super().__init__(options, survival)
        self.changes = BatchSelection()

    def setup(self, trainer: L.Trainer, module: Any, earlier: list[Any]) -> None:
        """See :meth:`Unit.setup`."""
        super().setup(trainer, module, earlier)
        self.changes = earlier[0].changes if earlier else BatchSelection()
        iterator = is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True)
        remedy = "it draws its batches itself, out of reach: let it take a batch, or emit them with unit='buffer'"
        require(not iterator, "training_step", "with dataloader_iter", remedy)
        require(self.options.losses is not None, "losses", None, "pass losses(module, batch) -> [n], one loss a row")

    def default_direction(self) -> Direction:
        """The batch's own mean gradient."""
        return BufferDirection()

    def start(self, batches: int, direction_state: dict[str, Any]) -> None:
        """See :meth:`Unit.start`."""
        super().start(batches, direction_state)
        self._health = Health(self.options.name, by_sign="gold_scores" not in self.keep.reads)
        self._floor = 2 if any(isinstance(part, _BatchNorm) for part in self.module.modules()) else 1

    def begin_batch(self, batch: Any, batches: int) -> None:
        """Let the rows that oppose the direction leave the batch, before the module's own step."""
        super().begin_batch(batch, batches)
        if not self.earlier:
            self.changes.begin(self.trainer)
        if not self.is_due or self.changes.over:
            return
        options = self.options
        with self.timed():
            scores = self.scoring.of_batches([batch], batches)
            while self.direction.has_turned(scores, batches):  # once: the next direction is of this batch
                scores = self.scoring.of_batches([batch], batches)
            before = self.changes.before(batch, scores, options.weighs, read=options.select is None)
            selection, own = self.select(scores, batch, before)
            if not options.weighs:
                selection = with_floor(selection, own, self._floor)
        self.curves.batch(self.module, selection, self.direction.loss, batches - 1)
        self._health.take_in(selection.scores, selection.survival, self.direction.loss)
        if self.takes_effect(selection, own, batch):
            self.changes.make(
                self.module, batch, selection, own, options.weighs, options.select, options.loss_reduction
            )

    def on_before_backward(self, loss: Tensor) -> None:
        """Let every kept row count the same in a step that is made of several batches."""
        if not self.earlier:
            self.changes.scale_loss(self.trainer, loss)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """The other half of that, before gradients are clipped."""
        if not self.earlier:
            self.changes.scale_step(self.trainer, optimizer)

    def end_batch(self) -> None:
        """Say what scoring took of the step, and make the batch whole when all have seen it as the step did."""
        if not self.earlier:
            self.changes.undo_after(self.module)
        self.curves.step(self.module, self.seconds_of_batch, self.seconds)

    def end_epoch(self) -> None:
        """See :meth:`Unit.end_epoch`."""
        self.changes.undo()
        super().end_epoch()

    def abandon(self) -> None:
        """See :meth:`Unit.abandon`."""
        self.changes.undo()
        super().abandon()
