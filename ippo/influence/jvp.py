"""Forward mode: one pass over dual numbers gives every value and its derivative along a direction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from ippo.influence.direction import Losses
from ippo.influence.forward_mode import ForwardMode, plain_kernels
from ippo.influence.inputs import check_tensor
from ippo.influence.parameters import trainable


def derivative(
    module: nn.Module, function: Losses, batch: Any, direction: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor | None]:
    """``function(module, batch)`` and its derivative along the direction, of any shape; no graph is kept. Where no
    parameter was used, the derivative is None.

    Dual tensors are used directly: ``torch.func.jvp`` does the same through a layer of its own.
    """
    with torch.enable_grad(), forward_ad.dual_level(), ForwardMode(), plain_kernels(module):
        duals = {
            name: forward_ad.make_dual(parameter.detach(), direction[name])
            for name, parameter in trainable(module).items()
        }
        found = call_with(module, duals, function, batch)
        check_tensor(found)
        values, jvps = forward_ad.unpack_dual(found)
    return values, jvps


def call_with(module: nn.Module, tensors: Mapping[str, Tensor], function: Losses, batch: Any) -> Tensor:
    """``function(module, batch)`` with other tensors in the place of the trainable parameters.

    Each attribute is swapped once: every owner of a tied parameter, but a layer under two names only once, because
    torch would put back what it found at the second time, which is the first time's replacement.
    """
    canonical = {id(parameter): name for name, parameter in trainable(module).items()}
    swaps = {}
    for path, part in module.named_modules():  # each module under its first name
        for own, parameter in part.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) in canonical:
                swaps[f"module.{path}.{own}" if path else f"module.{own}"] = tensors[canonical[id(parameter)]]
    return functional_call(_Bound(module, function), swaps, (batch,), tie_weights=False)


class _Bound(nn.Module):
    """A function of a module as a module's forward, so that parameters can be swapped."""

    def __init__(self, module: nn.Module, function: Losses) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, batch: Any) -> Tensor:
        return self.function(self.module, batch)
