"""Score a batch and form the gradient of what is kept of it in one forward and one backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ippo.errors import require
from ippo.influence.direction import Buffer, Direction, Losses, resolve
from ippo.influence.directions import leaves_one_out
from ippo.influence.hook_check import checked_backward
from ippo.influence.layer_formulas import Arguments, LayerFormula, row_dots, weighted_sum
from ippo.influence.parameters import Subset, require_whole, scored, trainable

Weigh = Callable[[Tensor], Tensor]
"""[n] scores -> [n] factors of the losses, 0 for an episode that is dropped."""


def score_and_backward(
    module: nn.Module,
    losses: Losses,
    batch: Any,
    direction: Direction | Mapping[str, Tensor],
    weigh: Weigh,
    parameters: Subset = None,
) -> Tensor:
    """The backward of a filtered training step: adds the gradient of ``(weigh(scores) * losses).sum()`` to ``.grad``.

    Each layer's inputs and output gradient are kept until all scores are known. Then the same factors, row by row
    times the weight, give the parameters' gradients: no second forward or backward, and equal to scoring first and
    stepping on the survivors. For more steps than one on a buffer, score it once with :class:`ExactScorer` instead.

    Args:
        module: its trainable parameters are scored and trained.
        losses: ``losses(module, batch) -> [n]``.
        batch: one micro-batch. Gradients of several add up in ``.grad``, as after any backward.
        direction: as for :meth:`Scorer.score`; cache it: computing one costs a backward of its own.
        weigh: from [n] scores to [n] factors of the losses, e.g. ``lambda s: (s > 0) / (s > 0).sum().clamp(min=1)``.
        parameters: those that are scored; all trainable ones are trained.

    Returns:
        [n] float32 scores.

    Raises:
        UsageError: if the direction or the weights do not fit, or a layer's rows are not the episodes.

    Example:
        >>> module = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(module.weight, 3.0)
        >>> squares = lambda module, x: (module(x) ** 2 / 2).flatten()  # gradient of a row: weight * x ** 2
        >>> batch = torch.tensor([[1.0], [2.0]])
        >>> score_and_backward(module, squares, batch, {"weight": torch.tensor([[0.5]])}, lambda s: (s > 2).float())
        tensor([1.5000, 6.0000])
        >>> module.weight.grad  # of the second row alone
        tensor([[12.]])
    """
    require(not leaves_one_out(direction), "direction", "BufferDirection(leave_one_out=True)", "use ExactScorer")
    require_whole(module, "score_and_backward", type(module).__name__)
    with scored(module, parameters):
        along = resolve(direction, module, Buffer(losses, [batch]))
    kept: list[tuple[LayerFormula, Callable[[Tensor], dict[str, Tensor]]]] = []
    parts: list[Tensor] = []

    def keep(formula: LayerFormula, arguments: Arguments, b: Tensor) -> None:
        """What is shorter is kept: the gradients a row, or what they would be formed from."""
        mine = formula.along(along)
        if formula.is_short(arguments, b):
            rows = formula.row_gradients(arguments, b)
            kept.append((formula, partial(weighted_sum, rows)))
            parts.extend([row_dots(rows, mine)] if mine else [])
        else:
            kept.append((formula, partial(formula.gradients, arguments, b)))
            parts.extend([formula.dots(arguments, b, along)] if mine else [])

    with scored(module):
        values = checked_backward(module, lambda: losses(module, batch), keep)
        scores = torch.stack(parts).sum(0) if parts else torch.zeros_like(values, dtype=torch.float32)
        weights = weigh(scores)
        fits = isinstance(weights, Tensor) and weights.shape == scores.shape and bool(weights.isfinite().all())
        found = f"shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else f"type {type(weights).__name__}"
        require(fits, "weigh", f"a result of {found}", "return one finite factor an episode, [n]")
        targets = trainable(module)
        while kept:
            formula, weighted = kept.pop()
            for own, gradient in weighted(weights.float()).items():
                _add(targets[formula.names[own]], gradient)
    return scores


def _add(parameter: nn.Parameter, gradient: Tensor) -> None:
    gradient = gradient.to(parameter)
    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
