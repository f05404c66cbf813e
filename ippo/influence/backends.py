"""Three ways to the same scores: hooks, forward mode, and finite differences.

Every function takes a module, losses, one micro-batch and a direction, and returns [n] scores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ippo.influence.direction import Losses
from ippo.influence.forward_mode import FixedPadding
from ippo.influence.hook_check import checked_backward, checked_derivative
from ippo.influence.inputs import check_losses
from ippo.influence.jvp import call_with
from ippo.influence.layer_formulas import Arguments, LayerFormula, find_layer_formulas, row_dots
from ippo.influence.parameters import trainable
from ippo.influence.precision import WatchPrecision, half_of, require_full_precision


def ghost_scores(module: nn.Module, losses: Losses, batch: Any, direction: Mapping[str, Tensor]) -> Tensor:
    """One forward, one backward for activations: each layer adds <output gradient, its output's derivative>.

    Raises:
        UncoveredLayerError: if a layer's rows cannot be told apart; no layer is ever left out.
    """
    parts: list[Tensor] = []

    def add(formula: LayerFormula, arguments: Arguments, b: Tensor) -> None:
        parts.append(formula.dots(arguments, b, direction))

    values = checked_backward(module, lambda: losses(module, batch), add)
    return torch.stack(parts).sum(0) if parts else torch.zeros_like(values)


def jvp_scores(module: nn.Module, losses: Losses, batch: Any, direction: Mapping[str, Tensor]) -> Tensor:
    """[n] the derivative of each loss along the direction, in one pass that keeps no graph.

    Raises:
        NotImplementedError: if torch has no forward derivative of an operation.
        MismatchError: if it is not the gradient that a backward gives.
    """
    values, jvps = checked_derivative(module, losses, batch, direction)
    check_losses(values, depends=jvps is not None)
    return torch.zeros_like(values) if jvps is None else jvps


def fd_scores(module: nn.Module, losses: Losses, batch: Any, direction: Mapping[str, Tensor]) -> Tensor:
    """Central differences of the losses along the direction: two forwards of any kernel, a check rather than a tool.

    The step moves the parameters by a thousandth of their norm: losses in float32 carry about seven digits, of which a
    smaller step would leave too few, while a larger one would meet the curvature.

    Raises:
        UsageError: if a parameter has less than float32 precision, or the losses are computed in less.
    """
    parameters = {name: parameter.detach() for name, parameter in trainable(module).items()}
    require_full_precision(half_of(module), "backend", "fd")
    length = _norm(direction)
    if length == 0:
        return torch.zeros_like(losses(module, batch))
    step = 1e-3 * max(_norm(parameters), 1.0) / length
    sides, precision = [], WatchPrecision()
    with torch.no_grad():
        for sign in (1, -1):
            moved = {name: value + sign * step * direction[name] for name, value in parameters.items()}
            with precision, FixedPadding({id(tensor): parameters[name] for name, tensor in moved.items()}):
                values = call_with(module, moved, losses, batch)
            require_full_precision(precision.half, "backend", "fd")
            check_losses(values, depends=True)  # moved, not differentiated: there is no graph to ask
            sides.append(values.double())
    return (sides[0] - sides[1]) / (2 * step)


def ghost_scores_and_norms(
    module: nn.Module, losses: Losses, batch: Any, direction: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """[n] scores and [n] squared lengths of the gradients, from one backward. A layer whose gradients are not
    needed for their lengths forms none; of the largest other one those of all ``n`` are held at a time, so that the
    size of the batch bounds the memory.

    Raises:
        UncoveredLayerError: if a layer's rows cannot be told apart; no layer is ever left out.
    """
    owners = Counter(name for formula in find_layer_formulas(module) for name in formula.names.values())
    scores: list[Tensor] = []
    squares: list[Tensor] = []
    shared: dict[str, Tensor] = {}  # gradients of parameters with several uses add up before they are squared

    def add(formula: LayerFormula, arguments: Arguments, b: Tensor) -> None:
        alone = formula.runs == 1 and all(owners[name] == 1 for name in formula.names.values())
        lengths = formula.squares(arguments, b) if alone else None
        if lengths is not None:
            scores.append(formula.dots(arguments, b, direction))
            squares.append(lengths)
            return
        gradients = formula.row_gradients(arguments, b)
        scores.append(row_dots(gradients, formula.along(direction)))
        for own, rows in gradients.items():
            name = formula.names[own]
            if owners[name] == formula.runs == 1:
                squares.append(_row_squares(rows))
            else:
                shared[name] = shared[name] + rows if name in shared else rows

    values = checked_backward(module, lambda: losses(module, batch), add)
    if not scores:
        return torch.zeros_like(values), torch.zeros_like(values)
    squares += [_row_squares(rows) for rows in shared.values()]
    return torch.stack(scores).sum(0), torch.stack(squares).sum(0)


def _row_squares(rows: Tensor) -> Tensor:
    return rows.float().square().flatten(1).sum(1)


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return float(torch.stack([tensor.double().norm() for tensor in tensors.values()]).norm())
