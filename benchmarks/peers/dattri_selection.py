"""One filtered training step as `dattri_llm` 0.1.0 takes it: the peer half of the influence benchmark.

Importable, so that both halves run in one process, each on its own copy of one model: hooks stay on the peer's until
`FilteredTraining.close`. It imports nothing of this project.

The peer's definition (`dattri_llm.gradient.callbacks.data_selection_callback.DataSelectionCallback`): in
`on_step_end`, within `backward()` of the training loss, `compute_scores` takes the dot product of each row's gradient
with the gradient of the validation loss, summed over the hooked layers; `select_samples` drops rows with a score below
a threshold; `remove_contributions` subtracts their share from every `grad`; the optimizer then steps as ever. Hooks
read what goes into a layer and what comes back, so any loss will do. Where this is not our definition:

* It scores layers, not parameters: linear, embedding and norm layers with their biases. A weight that two layers
  share counts in each by itself, without the products across (a warning in `HookManager` says so). Hugging Face's
  RMSNorm has to be declared, as `coverage` does; else it is neither scored nor subtracted.
* A layer that sees one row for the whole batch, as GPT-2's position embedding unless `position_ids` have a row for
  each sequence, adds the batch's product to every score, and nothing of it is subtracted. `row_losses` passes them.
* It scores anew in every step, in the mode the model is in, against the gradient of one validation batch, which it
  computes in every step or holds; we score a buffer once, in evaluation mode.
* Rows that stay weigh 1 / n of the mean loss, or 1 / kept with `renormalize`; rows with a score of 0 or NaN stay.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from dattri_llm import REGISTER_ALL, DataSelectionCallback, Gradient, HookManager, HookManagerConfig
from dattri_llm.gradient.ops import materialize
from dattri_llm.utils.module import rms_norm_module_kwargs
from torch import Tensor, nn

Losses = Callable[[nn.Module, Any], Tensor]
"""``losses(model, batch) -> [n]``; it calls the hooked model itself, with tensors of n rows by keyword."""


class Rows(NamedTuple):
    """Padded sequences, all [n, l]. The loss of a row is the sum of ``-weights * log p(token)``.

    ``weights``: A_t / T on the T response tokens for PPO at ratio 1, 1 / T for supervised fine-tuning; 0 elsewhere.
    """

    input_ids: Tensor
    attention_mask: Tensor
    weights: Tensor


class Selection(NamedTuple):
    """[n] scores, of each row's own loss, and [n] bool, True for the rows that the step learned from."""

    scores: Tensor
    kept: Tensor


def row_losses(model: nn.Module, rows: Rows) -> Tensor:
    """[n] losses of a Hugging Face causal language model."""
    positions = (rows.attention_mask.long().cumsum(1) - 1).clamp(min=0)
    inputs = {"input_ids": rows.input_ids, "attention_mask": rows.attention_mask, "position_ids": positions}
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    surprises = nn.functional.cross_entropy(logits.transpose(1, 2), rows.input_ids[:, 1:], reduction="none")
    return (rows.weights[:, 1:] * surprises).sum(1)


def coverage(model: nn.Module) -> HookManagerConfig:
    """Every layer of a kind the package knows, and Hugging Face's RMSNorm declared by the recipe of its README."""
    norms = {name: module for name, module in model.named_modules() if hasattr(module, "variance_epsilon")}
    return HookManagerConfig(
        linear_io=REGISTER_ALL,
        hook_types=dict.fromkeys(norms, "linear_io"),
        layer_types=dict.fromkeys(norms, "nn.RMSNorm"),
        module_kwargs={
            name: rms_norm_module_kwargs(normalized_shape=tuple(norm.weight.shape), eps=norm.variance_epsilon)
            for name, norm in norms.items()
        },
    )


def captured(model: nn.Module, loss: Callable[[], Tensor], config: HookManagerConfig | None = None) -> Gradient:
    """Each row's share in the gradient of ``loss()``, factorized; every ``grad`` is None afterwards."""
    manager = HookManager(model, config=config or coverage(model))
    with manager.collect(deregister_on_exit=True):
        loss().backward()
    model.zero_grad(set_to_none=True)
    return manager.get_gradient()


def validation_gradient(
    model: nn.Module, batch: Any, losses: Losses = row_losses, config: HookManagerConfig | None = None
) -> Gradient:
    """The gradient of the mean loss at the present weights, in the form that ``target="fixed"`` is documented with."""
    return captured(model, lambda: losses(model, batch).mean(), config)


def summed(gradient: Gradient) -> Gradient:
    """The same target as one dense row a layer: equal scores, at a cost that does not grow with its number of rows.

    In exchange the package makes every training row's gradient dense, an embedding's over the whole vocabulary.
    """
    return gradient.map_layers(lambda _name, rows, kind: materialize(rows, kind).sum(0, keepdim=True))


def layer_scores(
    model: nn.Module, rows: Any, target: Gradient, losses: Losses = row_losses, config: HookManagerConfig | None = None
) -> dict[str, Tensor]:
    """[n] scores for each hooked layer; ``sum(layer_scores(...).values())`` is what rows are selected by."""
    return DataSelectionCallback.compute_scores(captured(model, lambda: losses(model, rows).sum(), config), target)


class FilteredTraining:
    """Training with the callback on the model: a ``step`` scores, drops and updates in one backward pass.

    ``validation`` is a batch, whose gradient every step computes anew, or a gradient to hold (`validation_gradient`,
    `summed`). ``renormalize`` makes the gradient that of the mean over the kept rows; the package's default is False.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        validation: Any,
        losses: Losses = row_losses,
        renormalize: bool = False,
        config: HookManagerConfig | None = None,
    ) -> None:
        self.model, self.optimizer, self.losses = model, optimizer, losses
        target: dict[str, Any] = {"target": "fixed", "target_gradient": validation}
        if not isinstance(validation, Gradient):
            target = {"target": "val_loader", "val_loader": [validation]}
            target["val_loss_fn"] = lambda model, batch: losses(model, batch).mean()
        self.callback = DataSelectionCallback(model, renormalize=renormalize, **target)  # drops scores below 0
        manager = HookManager(model, config=config or coverage(model), callbacks=[self.callback])
        self._hooks = ExitStack()
        self._hooks.enter_context(manager.collect(deregister_on_exit=True))

    def step(self, rows: Any) -> Selection:
        """One optimizer step on the rows that the callback keeps."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.losses(self.model, rows)
        losses.mean().backward()
        self.optimizer.step()
        scores: Any = self.callback.last_scores
        kept = torch.ones(len(losses), dtype=torch.bool)
        kept[self.callback.last_dropped] = False
        return Selection(scores * len(losses), kept)  # the mean made each score 1 / n of the row's own

    def close(self) -> None:
        """Take the hooks off the model."""
        self._hooks.close()
