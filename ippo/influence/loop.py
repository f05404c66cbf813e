"""The slow way, which everything else is held against: one plain backward an episode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ippo.influence.direction import Losses
from ippo.influence.inputs import check_losses
from ippo.influence.layer_formulas import Arguments, LayerFormula, row_dots
from ippo.influence.parameters import trainable
from ippo.modes import evaluation_mode


def episode_gradients(module: nn.Module, values: Tensor) -> Iterator[dict[str, Tensor]]:
    """The gradient of each loss, through the graph that they share; without the parameters that it does not read.

    Args:
        module: its trainable parameters are differentiated by.
        values: [n] losses.
    """
    parameters = trainable(module)
    for value in values:
        if not value.requires_grad:
            yield {}
            continue
        found = torch.autograd.grad(value, list(parameters.values()), retain_graph=True, allow_unused=True)
        yield {name: gradient for name, gradient in zip(parameters, found, strict=True) if gradient is not None}


def loop_scores(module: nn.Module, losses: Losses, batch: Any, direction: Mapping[str, Tensor]) -> Tensor:
    """[n] scores; pass micro-batches of one to bound its cost."""
    return loop_scores_and_norms(module, losses, batch, direction)[0]


def loop_scores_and_norms(
    module: nn.Module, losses: Losses, batch: Any, direction: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """[n] scores and [n] squared lengths of the gradients."""
    with torch.enable_grad(), evaluation_mode(module, checkpointing=True):
        values = losses(module, batch)
        check_losses(values)
        scores, squares = torch.zeros(2, len(values), device=values.device)
        for index, gradients in enumerate(episode_gradients(module, values)):
            for name, gradient in gradients.items():
                scores[index] += (gradient.float() * direction[name].float()).sum()
                squares[index] += gradient.float().square().sum()
    return scores, squares


class LoopFormula(LayerFormula):
    """A layer without a forward derivative: one backward a row, through it alone."""

    def dots(self, arguments: Arguments, b: Tensor, direction: Mapping[str, Tensor]) -> Tensor:
        along = self.along(direction)
        rows = self._each_row(arguments, b)
        return torch.stack([row_dots({own: one.unsqueeze(0) for own, one in row.items()}, along)[0] for row in rows])

    def row_gradients(self, arguments: Arguments, b: Tensor) -> dict[str, Tensor]:
        rows = list(self._each_row(arguments, b))
        return {own: torch.stack([row[own] for row in rows]) for own in self.names}

    def _each_row(self, arguments: Arguments, b: Tensor) -> Iterator[dict[str, Tensor]]:
        args, kwargs = arguments
        parameters = {own: value.requires_grad_() for own, value in self.parameters.items()}
        with torch.enable_grad():
            output = self._forward(parameters, args, kwargs)
        for row in range(len(b)):
            alone = torch.zeros_like(b)
            alone[row] = b[row]
            found = torch.autograd.grad(output, list(parameters.values()), alone, retain_graph=True, allow_unused=True)
            yield {
                own: torch.zeros_like(value) if gradient is None else gradient
                for (own, value), gradient in zip(parameters.items(), found, strict=True)
            }
