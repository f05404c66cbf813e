"""The other exact ways to the same scores: hooks, one backward each, and finite differences.

Every function takes a module, losses, one micro-batch and a direction, and returns [n] scores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ippo.errors import require
from ippo.influence.check import checked_backward
from ippo.influence.direction import Losses
from ippo.influence.forward_mode import FixedPadding
from ippo.influence.jvp import call_with
from ippo.influence.parameters import check_losses, trainable
from ippo.influence.sites import Arguments, Site, find_sites
from ippo.influence.watch import UncoveredLayerError


def ghost_scores(module: nn.Module, losses: Losses, batch: Any, direction: Mapping[str, Tensor]) -> Tensor:
    """One forward, one backward for activations: each layer adds <output gradient, its output's derivative>.

    Raises:
        UncoveredLayerError: if a layer's rows cannot be told apart; no layer is ever left out.
    """
    parts: list[Tensor] = []

    def add(site: Site, arguments: Arguments, b: Tensor) -> None:
        parts.append(site.dots(arguments, b, direction))

    values = checked_backward(module, lambda: losses(module, batch), add)
    return torch.stack(parts).sum(0) if parts else torch.zeros_like(values)


def loop_scores(module: nn.Module, losses: Losses, batch: Any, direction: Mapping[str, Tensor]) -> Tensor:
    """One backward an episode through the batch's shared graph; pass micro-batches of one to bound its cost."""
    parameters = trainable(module)
    with torch.enable_grad():
        values = losses(module, batch)
        check_losses(values)
        scores = torch.zeros(len(values), device=values.device)
        for index, value in enumerate(values):
            gradients = torch.autograd.grad(value, list(parameters.values()), retain_graph=True, allow_unused=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    scores[index] += (gradient.float() * direction[name].float()).sum()
    return scores


def fd_scores(module: nn.Module, losses: Losses, batch: Any, direction: Mapping[str, Tensor]) -> Tensor:
    """Central differences of the losses along the direction: two forwards of any kernel, a check rather than a tool.

    The step moves the parameters by a thousandth of their norm: losses in float32 carry about seven digits, of which a
    smaller step would leave too few, while a larger one would meet the curvature.

    Raises:
        UsageError: if a scored parameter has less than float32 precision.
    """
    parameters = {name: parameter.detach() for name, parameter in trainable(module).items()}
    for name, parameter in parameters.items():
        precise = parameter.dtype in (torch.float32, torch.float64)
        require(precise, f"module.{name}", parameter.dtype, "finite differences need float32: use backend='jvp'")
    length = _norm(direction)
    if length == 0:
        return torch.zeros_like(losses(module, batch))
    step = 1e-3 * max(_norm(parameters), 1.0) / length
    sides = []
    with torch.no_grad():
        for sign in (1, -1):
            moved = {name: value + sign * step * direction[name] for name, value in parameters.items()}
            with FixedPadding({id(tensor): parameters[name] for name, tensor in moved.items()}):
                values = call_with(module, moved, losses, batch)
            check_losses(values)
            sides.append(values.double())
    return (sides[0] - sides[1]) / (2 * step)


def squared_norms(module: nn.Module, losses: Losses, batch: Any) -> Tensor:
    """[n] squared length of each episode's gradient. The largest layer's gradients of all ``n`` are held at a time, so
    that the size of the batch bounds the memory; where hooks cannot tell episodes apart, one backward each.
    """
    uses = Counter(name for site in find_sites(module) for name in site.names.values())
    squares: list[Tensor] = []
    shared: dict[str, Tensor] = {}  # gradients of parameters with several uses add up before they are squared
    seen: set[str] = set()

    def add(site: Site, arguments: Arguments, b: Tensor) -> None:
        if site.name in seen:
            raise UncoveredLayerError(site.name, "it runs twice in one pass")
        seen.add(site.name)
        for own, rows in site.row_gradients(arguments, b).items():
            name = site.names[own]
            if uses[name] == 1:
                squares.append(_row_squares(rows))
            else:
                shared[name] = shared[name] + rows if name in shared else rows

    try:
        values = checked_backward(module, lambda: losses(module, batch), add)
    except UncoveredLayerError:
        return _norms_by_loop(module, losses, batch)
    squares += [_row_squares(rows) for rows in shared.values()]
    return torch.stack(squares).sum(0) if squares else torch.zeros_like(values)


def _norms_by_loop(module: nn.Module, losses: Losses, batch: Any) -> Tensor:
    parameters = list(trainable(module).values())
    with torch.enable_grad():
        values = losses(module, batch)
        check_losses(values)
        rows = [torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True) for value in values]
    squares = [[gradient.float().square().sum() for gradient in row if gradient is not None] for row in rows]
    return torch.stack([torch.stack(row).sum() if row else values.new_zeros(()) for row in squares]).detach()


def _row_squares(rows: Tensor) -> Tensor:
    return rows.float().square().flatten(1).sum(1)


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return float(torch.stack([tensor.double().norm() for tensor in tensors.values()]).norm())
