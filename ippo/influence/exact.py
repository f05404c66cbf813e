"""Exact influence scores: the dot product of each episode's gradient with a direction, without storing gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from ippo.errors import require
from ippo.influence.direction import Direction, Losses, resolve
from ippo.influence.forward_mode import ForwardMode
from ippo.influence.parameters import trainable
from ippo.modes import evaluation_mode

Backend = Literal["auto", "jvp", "loop"]


class Scorer(ABC):
    """Anything that scores: one number an episode, positive where a step on it helps."""

    @abstractmethod
    def score(
        self, module: nn.Module, losses: Losses, batches: Iterable[Any], direction: Direction | Mapping[str, Tensor]
    ) -> Tensor:
        """One score an episode, in the order of the batches.

        Args:
            module: its trainable parameters are scored.
            losses: ``losses(module, batch) -> [n_batch]``, one differentiable loss an episode.
            batches: micro-batches, any structure that ``losses`` understands.
            direction: the gradient of the reference loss, or anything with ``compute(module)`` that gives it.

        Returns:
            [n] float32; a NaN loss gives a NaN score.

        Raises:
            UsageError: if the direction does not fit the module, or ``losses`` does not give one number an episode.
        """


class ExactScorer(Scorer):
    """score_i = <gradient of loss_i, direction>, exactly (arXiv 2604.01597, the influence score).

    A positive score says that a descent step on episode i also lowers the reference loss.

    Args:
        backend: ``"jvp"``, one forward-mode pass that yields all scores at once and keeps no graph; ``"loop"``, one
            backward an episode, the oracle of the tests; ``"auto"`` takes jvp.

    Example:
        >>> module = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(module.weight, 3.0)
        >>> squares = lambda module, x: (module(x) ** 2 / 2).flatten()  # gradient of a row: weight * x ** 2
        >>> ExactScorer().score(module, squares, [torch.tensor([[1.0], [2.0]])], {"weight": torch.tensor([[0.5]])})
        tensor([1.5000, 6.0000])
    """

    def __init__(self, backend: Backend = "auto") -> None:
        choices = ("auto", *_BACKENDS)
        require(backend in choices, "backend", backend, f"use one of {', '.join(choices)}")
        self.backend = backend

    def score(
        self, module: nn.Module, losses: Losses, batches: Iterable[Any], direction: Direction | Mapping[str, Tensor]
    ) -> Tensor:
        """See :meth:`Scorer.score`."""
        tangent = resolve(direction, module)
        one_batch = _BACKENDS["jvp" if self.backend == "auto" else self.backend]
        with evaluation_mode(module):
            scores = [one_batch(module, losses, batch, tangent).detach().float() for batch in batches]
        return torch.cat(scores) if scores else torch.empty(0)


def _forward_mode(module: nn.Module, losses: Losses, batch: Any, tangent: dict[str, Tensor]) -> Tensor:
    """All scores as the derivative of the losses along the tangent: one pass over dual numbers, no graph.

    Dual tensors are used directly: ``torch.func.jvp`` does the same through a layer of its own.
    """
    bound = _Bound(module, losses)
    with torch.no_grad(), ForwardMode(), forward_ad.dual_level():
        duals = {
            f"module.{name}": forward_ad.make_dual(parameter.detach(), tangent[name])
            for name, parameter in trainable(module).items()
        }
        values, scores = forward_ad.unpack_dual(functional_call(bound, duals, (batch,)))
    _check_losses(values)
    return torch.zeros_like(values) if scores is None else scores  # None: the losses do not depend on the parameters


def _one_backward_each(module: nn.Module, losses: Losses, batch: Any, tangent: dict[str, Tensor]) -> Tensor:
    """One backward an episode through the batch's shared graph; pass micro-batches of one to bound its cost."""
    parameters = trainable(module)
    with torch.enable_grad():
        values = losses(module, batch)
        _check_losses(values)
        scores = torch.zeros(len(values), device=values.device)
        for index, value in enumerate(values):
            gradients = torch.autograd.grad(value, list(parameters.values()), retain_graph=True, allow_unused=True)
            for gradient, along in zip(gradients, tangent.values(), strict=True):
                if gradient is not None:
                    scores[index] += (gradient.float() * along.float()).sum()
    return scores


class _Bound(nn.Module):
    """The losses as a module's forward, so that parameters can be swapped for dual numbers, tied weights included."""

    def __init__(self, module: nn.Module, losses: Losses) -> None:
        super().__init__()
        self.module, self.losses = module, losses

    def forward(self, batch: Any) -> Tensor:
        return self.losses(self.module, batch)


def _check_losses(values: Tensor) -> None:
    shape = f"a result of shape {tuple(values.shape)}"
    require(
        values.dim() == 1, "losses", shape, "return one loss for each episode, [n]; leave the mean over episodes out"
    )


_BACKENDS: dict[str, Callable[[nn.Module, Losses, Any, dict[str, Tensor]], Tensor]] = {
    "jvp": _forward_mode,
    "loop": _one_backward_each,
}
