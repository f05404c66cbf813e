"""The gradient that an ordinary backward gives, of parameters that are whole or in shards."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ippo.distributed import total, world_size
from ippo.errors import require
from ippo.influence.sharding import is_spread


def plain_gradients(
    parameters: Mapping[str, nn.Parameter], values: Tensor, factors: Tensor | None = None
) -> dict[str, Tensor]:
    """Of the sum of the values times their factors, without the parameters that they do not read.

    Of parameters that FSDP2 holds in parts it is this rank's shard of what all ranks' values give together: there a
    backward runs on all of them, and reduces and scatters what it finds. What was in ``.grad`` is there again
    afterwards.

    Args:
        parameters: by name.
        values: [...] or [].
        factors: of the same shape; None for 1, where ``values`` is one number.

    Raises:
        UsageError: if parameters are sharded and the values have no gradient: the other ranks would wait for it.
    """
    if is_spread(parameters):
        return _shards(parameters, values, factors)
    found = torch.autograd.grad(values, list(parameters.values()), factors, allow_unused=True)
    return {name: one for name, one in zip(parameters, found, strict=True) if one is not None}


def over_ranks(gradient: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """A sum of such gradients, of one parameter, over all ranks."""
    return gradient if is_spread(parameters) else total(gradient)


def _shards(parameters: Mapping[str, nn.Parameter], values: Tensor, factors: Tensor | None) -> dict[str, Tensor]:
    """FSDP2 gives the mean over the ranks, from which the sum is made again."""
    remedy = "ranks with parts of a model wait for one another's backward: let every batch depend on its parameters"
    require(values.requires_grad, "losses", "a result without a gradient", remedy)
    before = {name: parameter.grad for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    try:
        values.backward(factors)
        found = {name: parameter.grad for name, parameter in parameters.items()}
    finally:
        for name, parameter in parameters.items():
            parameter.grad = before[name]
    return {name: one.mul_(world_size()) for name, one in found.items() if one is not None}
