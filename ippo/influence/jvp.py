"""Scores by forward mode: one pass over dual numbers gives every loss and its derivative along the direction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from ippo.influence.direction import Losses
from ippo.influence.forward_mode import ForwardMode
from ippo.influence.parameters import check_losses, trainable


def jvp_scores(module: nn.Module, losses: Losses, batch: Any, direction: Mapping[str, Tensor]) -> Tensor:
    """[n] the derivative of each loss along the direction."""
    values, scores = derivative(module, losses, batch, direction)
    check_losses(values)
    return scores


def derivative(
    module: nn.Module, function: Losses, batch: Any, direction: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """``function(module, batch)`` and its derivative along the direction, of any shape; no graph is kept.

    Dual tensors are used directly: ``torch.func.jvp`` does the same through a layer of its own. Tied parameters are
    swapped together, under the one name that ``named_parameters`` gives them.
    """
    bound = Bound(module, function)
    with torch.no_grad(), ForwardMode(), forward_ad.dual_level():
        duals = {
            f"module.{name}": forward_ad.make_dual(parameter.detach(), direction[name])
            for name, parameter in trainable(module).items()
        }
        values, slopes = forward_ad.unpack_dual(functional_call(bound, duals, (batch,)))
    return values, torch.zeros_like(values) if slopes is None else slopes  # None: the parameters were not used


class Bound(nn.Module):
    """A function of a module as a module's forward, so that parameters can be swapped for dual numbers."""

    def __init__(self, module: nn.Module, function: Losses) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, batch: Any) -> Tensor:
        return self.function(self.module, batch)
