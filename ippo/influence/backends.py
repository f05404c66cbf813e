"""Three ways to the same scores: hooks, forward mode, and finite differences.

Every function takes a module, losses, one micro-batch and a direction, and returns [n] scores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ippo.influence.direction import Losses
from ippo.influence.forward_mode import FixedPadding
from ippo.influence.hook_check import checked_backward, checked_derivative, told_by_name
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
    sums = _ScoresAndNorms(module, direction)
    return sums.of(checked_backward(module, lambda: losses(module, batch), sums.add))


class MeanGradient(NamedTuple):
    """Of a batch.

    Args:
        gradient: the mean of its rows' gradients, for every trainable parameter.
        losses: [n].
        scores: [n] dot products of each row's gradient with the mean.
        squares: [n] squared lengths of the rows' gradients.
    """

    gradient: dict[str, Tensor]
    losses: Tensor
    scores: Tensor
    squares: Tensor


def ghost_mean_gradient(module: nn.Module, losses: Losses, batch: Any) -> MeanGradient:
    """The mean gradient of a batch and its rows' scores along it, from one forward and one backward. What the layers
    got is held until the mean is known.

    Raises:
        UncoveredLayerError: if a layer's rows cannot be told apart; no layer is ever left out.
    """
    mean = {name: torch.zeros_like(parameter) for name, parameter in trainable(module).items()}
    uses: list[tuple[LayerFormula, Arguments, Tensor]] = []

    def keep(formula: LayerFormula, arguments: Arguments, b: Tensor) -> None:
        uses.append((formula, arguments, b))
        weights = torch.full((len(b),), 1 / len(b), device=b.device)
        for own, gradient in formula.gradients(arguments, b, weights).items():
            mean[formula.names[own]] += gradient

    values = checked_backward(module, lambda: losses(module, batch), keep)
    sums = _ScoresAndNorms(module, mean)
    for use in uses:
        told_by_name(sums.add)(*use)
    return MeanGradient(mean, values, *sums.of(values))


class _ScoresAndNorms:
    """What the layers add to each row's score, and to the squared length of its gradient."""

    def __init__(self, module: nn.Module, direction: Mapping[str, Tensor]) -> None:
        self.direction = direction
        self._owners = Counter(name for formula in find_layer_formulas(module) for name in formula.names.values())
        self._scores: list[Tensor] = []
        self._squares: list[Tensor] = []
        self._shared: dict[str, Tensor] = {}  # gradients of parameters with several uses add up before they are squared

    def add(self, formula: LayerFormula, arguments: Arguments, b: Tensor) -> None:
        """A layer's use, see :data:`ippo.influence.hooks.OnGradient`."""
        alone = formula.runs == 1 and all(self._owners[name] == 1 for name in formula.names.values())
        lengths = formula.squares(arguments, b) if alone else None
        if lengths is not None:
            self._scores.append(formula.dots(arguments, b, self.direction))
            self._squares.append(lengths)
            return
        gradients = formula.row_gradients(arguments, b)
        self._scores.append(row_dots(gradients, formula.along(self.direction)))
        for own, rows in gradients.items():
            name = formula.names[own]
            if self._owners[name] == formula.runs == 1:
                self._squares.append(_row_squares(rows))
            else:
                self._shared[name] = self._shared[name] + rows if name in self._shared else rows

    def of(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """[n] scores and [n] squared lengths, for [n] losses."""
        if not self._scores:
            return torch.zeros_like(values), torch.zeros_like(values)
        squares = [*self._squares, *map(_row_squares, self._shared.values())]
        return torch.stack(self._scores).sum(0), torch.stack(squares).sum(0)


def _row_squares(rows: Tensor) -> Tensor:
    return rows.float().square().flatten(1).sum(1)


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return float(torch.stack([tensor.double().norm() for tensor in tensors.values()]).norm())
