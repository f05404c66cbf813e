"""What selections do to a batch before its step, how the rows that stay weigh in it, and how it is undone after."""

from __future__ import annotations

from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import WarningCache
from torch import Tensor

from ippo.callbacks.influence.batch_changes import Select, Undo, checked_weights, drop_rows, set_weight
from ippo.callbacks.influence.batch_rows import RowReader, column, require_rows
from ippo.callbacks.influence.overrides import override, skip_step
from ippo.distributed import total, world_size
from ippo.influence import Selection

Reduction = Literal["mean", "sum"]
"""What a training step makes of its rows' losses."""


class BatchSelection:
    """Takes the rows that selections drop out of a batch in place, or weighs them, and makes the batch whole again.

    All filters of a trainer share one. Where a step is made of several batches, of several ranks or accumulated ones,
    the mean loss of a batch with few survivors would weigh each of them more than the others' rows. So each batch's
    gradient is scaled by the share of its rows that stay, and that of the step by the inverse of the mean share: every
    kept row counts as it would have without the filter, times one factor for all. Nothing is scaled where nothing goes.
    """

    def __init__(self) -> None:
        self.made = False  # a filter has dealt with the present batch
        self._undone: list[Undo] = []
        self._share = 1.0  # of this rank's rows that stay
        self._shares = [1.0]  # the mean over the ranks, for each batch since the last optimizer step
        self._stepped = True
        self._reader = RowReader()
        self._told = WarningCache()

    def begin(self, trainer: L.Trainer) -> None:
        """A new batch."""
        self.undo()
        fresh = self._stepped or not _accumulates(trainer)
        self._shares = [1.0] if fresh else [*self._shares, 1.0]
        self._share, self._stepped, self.made = 1.0, False, False

    @property
    def over(self) -> bool:
        """Whether an earlier filter has left no row on any rank."""
        return self._shares[-1] == 0.0

    def before(self, batch: Any, scores: Tensor, weigh: bool, read: bool = True) -> Tensor | None:
        """[n] the weights that a batch's rows come with: its own, and what earlier filters have decided; None where
        they are 1 each.

        Args:
            batch: this rank's rows.
            scores: [n] one a row.
            weigh: whether the batch carries weights.
            read: see that its rows can be found; not those of a type of its own.

        Raises:
            UsageError: if its rows are not as many, or nobody can know which they are.
        """
        if read:
            require_rows(batch, len(scores), self._reader, leave=not weigh)
        if weigh:
            weights = column(batch, "weight")
            return None if weights is None else checked_weights(weights, len(scores), "batch['weight']")
        return torch.full_like(scores, float(self._share > 0)) if self.made else None

    def make(
        self,
        module: L.LightningModule,
        batch: Any,
        selection: Selection,
        own: slice,
        weigh: bool,
        select: Select | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        """Let the module's next step see what is kept.

        Args:
            module: the module that trains.
            batch: this rank's rows.
            selection: on the rows of all ranks.
            own: where this rank's are among them.
            weigh: set the entry ``weight`` and leave all rows in place.
            select: drops rows in place, for batches of a type of their own.
            reduction: what the module's step makes of the losses.
        """
        self.made, kept = True, selection.kept[own]
        if selection.survival == 0.0:
            self._told.warn("Influence filter: no row of a batch survived; such a step is skipped.")
            self._share = self._shares[-1] = 0.0
            self._undone.append(skip_step(module))
            return
        if weigh:
            self._undone.append(set_weight(batch, selection.weights_over_all[own]))
            share = selection.survival
        else:
            share = float(kept.float().mean()) if len(kept) else 0.0
        if reduction == "sum":
            share = float(share > 0)
        self._share *= share
        if reduction == "mean":
            self._shares[-1] = float(total(torch.tensor(self._share, device=kept.device))) / world_size()
        if weigh or not kept.any() or kept.all():
            return  # a rank without a survivor takes part in the others' step, with a gradient of zero
        if select is not None:
            undo = select(batch, kept)
            self._undone += [undo] if callable(undo) else []
        else:
            self._undone.append(drop_rows(batch, kept, self._reader))

    def scale_loss(self, trainer: L.Trainer, loss: Tensor) -> None:
        """Before a backward: let the batch's gradient count for the share of its rows that stay."""
        factor = self._share if _accumulates(trainer) or not self._share else self._share / self._shares[-1]
        if factor != 1.0 and loss.requires_grad:
            loss.register_hook(lambda gradient: gradient * factor)

    def scale_step(self, trainer: L.Trainer, optimizer: torch.optim.Optimizer) -> None:
        """Before a step on accumulated gradients: make a mean over the kept rows of what is one over all."""
        self._stepped = True
        whole = sum(self._shares) / len(self._shares)
        if not _accumulates(trainer) or whole in (0.0, 1.0):
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.div_(whole)

    def undo_after(self, module: L.LightningModule) -> None:
        """Undo when the module's own hook for the end of a batch is through, the last one to see the batch."""
        if not self._undone:
            return
        own = module.on_train_batch_end

        def last(*arguments: Any) -> None:
            own(*arguments)
            self.undo()

        self._undone.append(override(module, "on_train_batch_end", last))

    def undo(self) -> None:
        """Make the batch whole, and give the module its methods back."""
        while self._undone:
            self._undone.pop()()


def _accumulates(trainer: L.Trainer) -> bool:
    """Whether several batches add up to one step; in manual optimisation nobody but the module knows."""
    module = trainer.lightning_module
    return bool(module.automatic_optimization) and trainer.accumulate_grad_batches > 1
