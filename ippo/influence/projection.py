"""Scores from random sketches of the gradients: small vectors whose dot products are those of the gradients, on
average, and which can be kept and compared with one another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ippo.errors import require
from ippo.influence.direction import Buffer, Direction, Losses, resolve
from ippo.influence.directions import leave_one_out, leaves_one_out
from ippo.influence.gathering import gathered
from ippo.influence.hook_check import checked_backward
from ippo.influence.in_step import run_in_step
from ippo.influence.layer_formulas import Arguments, EmbeddingFormula, LayerFormula, LinearFormula
from ippo.influence.parameters import Subset, scored, trainable
from ippo.influence.scorer import Scorer


@dataclass(frozen=True)
class Sketches:
    """[n, k] sketches of ``n`` gradients; dot products of rows estimate those of the gradients, without bias."""

    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def similarity(self) -> Tensor:
        """[n, n] cosines between the episodes' gradients."""
        unit = nn.functional.normalize(self.rows)
        return unit @ unit.T

    def leave_one_out(self) -> Tensor:
        """[n] dot products of each gradient with the mean of the others' (DTV-Loo, arXiv 2609.35072)."""
        require(len(self) > 1, "sketches", f"of {len(self)} episode", "leaving one out needs at least two")
        others = (self.rows.sum(0) - self.rows) / (len(self) - 1)
        return (self.rows * others).sum(1)

    def duplicates(self, threshold: float = 0.99) -> list[tuple[int, int]]:
        """Pairs of episodes, the earlier first, whose gradients' cosine is above the threshold."""
        above = torch.triu(self.similarity() > threshold, diagonal=1)
        return [(first, second) for first, second in above.nonzero().tolist()]


class RandomProjectionScorer(Scorer):
    """score_i = <S g_i, S V> for a random linear map S, an unbiased estimate of <g_i, V> (TRAK, arXiv 2303.14186).

    S projects every parameter by itself: a matrix G to P G Q' with Gaussian P and Q of ``rank`` rows (the factored
    projection of LoGra, arXiv 2405.13954), which needs a layer's inputs and output gradients only; a vector to
    ``rank`` ** 2 numbers. An axis that is no longer than the rank is left as it is. The error shrinks as 1 / rank:
    see docs/results/scoring.md for how well ranks agree with exact scores.

    Args:
        rank: rows of P and of Q.
        seed: of the projection; the same seed and parameter shapes give the same one, on every machine.
        parameters: as in :class:`ExactScorer`.

    Example:
        >>> module = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(module.weight, 3.0)
        >>> squares = lambda module, x: (module(x) ** 2 / 2).flatten()  # gradient of a row: weight * x ** 2
        >>> scorer = RandomProjectionScorer(rank=1)  # as long as the axes: exact
        >>> scorer.score(module, squares, [torch.tensor([[1.0], [2.0]])], {"weight": torch.tensor([[0.5]])})
        tensor([1.5000, 6.0000])
        >>> scorer.sketches(module, squares, [torch.tensor([[1.0], [2.0]])]).rows
        tensor([[ 3.],
                [12.]])
    """

    def __init__(self, rank: int = 32, seed: int = 0, parameters: Subset = None) -> None:
        require(isinstance(rank, int) and rank >= 1, "rank", rank, "use a whole number of at least 1")
        self.rank, self.seed, self.parameters = rank, seed, parameters

    def score(
        self, module: nn.Module, losses: Losses, batches: Iterable[Any], direction: Direction | Mapping[str, Tensor]
    ) -> Tensor:
        """See :meth:`Scorer.score`."""
        with scored(module, self.parameters):
            along = resolve(direction, module, Buffer(losses, batches))
            reference = self._maps(module).flat(gathered(along, keep=False))
        rows = self.sketches(module, losses, batches).rows
        scores = rows @ reference if len(rows) else reference[:0]  # another rank may hold all the episodes
        return leave_one_out(scores, rows.square().sum(1).to(scores)) if leaves_one_out(direction) else scores

    def sketches(self, module: nn.Module, losses: Losses, batches: Iterable[Any]) -> Sketches:
        """The sketch of every episode's gradient, from one forward and one backward for activations.

        Args:
            module, losses, batches: as in :meth:`score`.
        """
        with scored(module, self.parameters):
            maps = self._maps(module)
            found = run_in_step(module, batches, lambda batch: maps.batch(module, losses, batch))
        return Sketches(torch.cat(found) if found else torch.empty(0, 0))

    def _maps(self, module: nn.Module) -> _Maps:
        return _Maps(trainable(module), self.rank, self.seed)


class _Maps:
    """The random map of every parameter, drawn one after another from one generator."""

    def __init__(self, parameters: Mapping[str, Tensor], rank: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.pairs: dict[str, tuple[Tensor, ...]] = {}
        for name, parameter in parameters.items():
            shape = _matrix(parameter.shape)
            sizes = [rank, rank] if len(shape) == 2 else [rank * rank]
            self.pairs[name] = tuple(
                _gaussian(size, axis, generator).to(parameter.device) for size, axis in zip(sizes, shape, strict=True)
            )

    def project(self, name: str, gradients: Tensor) -> Tensor:
        """[n, k] sketches of [n, *shape] gradients of one parameter."""
        flat = gradients.float().reshape(len(gradients), *_matrix(gradients.shape[1:]))
        left, *right = self.pairs[name]
        return (left @ flat @ right[0].T).flatten(1) if right else flat @ left.T

    def flat(self, gradient: Mapping[str, Tensor]) -> Tensor:
        """[k] sketch of a whole gradient, parameter after parameter."""
        return torch.cat([self.project(name, gradient[name].unsqueeze(0))[0] for name in self.pairs])

    def batch(self, module: nn.Module, losses: Losses, batch: Any) -> Tensor:
        """[n, k] sketches of the episodes of one batch. A parameter that is used twice adds both up, in one sketch."""
        parts: dict[str, Tensor] = {}

        def add(formula: LayerFormula, arguments: Arguments, b: Tensor) -> None:
            for name, part in self._layer(formula, arguments, b):
                parts[name] = parts[name] + part if name in parts else part

        values = checked_backward(module, lambda: losses(module, batch), add)
        width = {name: math.prod(len(side) for side in sides) for name, sides in self.pairs.items()}
        zeros = torch.zeros(len(values), 1, device=values.device)
        return torch.cat([parts.get(name, zeros.expand(-1, width[name])) for name in self.pairs], dim=1)

    def _layer(self, formula: LayerFormula, arguments: Arguments, b: Tensor) -> Iterable[tuple[str, Tensor]]:
        if isinstance(formula, LinearFormula | EmbeddingFormula) and "weight" in formula.names:
            rows, columns = self.pairs[formula.names["weight"]]
            yield formula.names["weight"], formula.sketch(arguments, b, rows, columns).flatten(1)
        if isinstance(formula, LinearFormula) and "bias" in formula.names:
            yield formula.names["bias"], self.project(formula.names["bias"], formula.bias_gradients(b))
        if not isinstance(formula, LinearFormula | EmbeddingFormula):
            for own, gradients in formula.row_gradients(arguments, b).items():
                yield formula.names[own], self.project(formula.names[own], gradients)


def _matrix(shape: torch.Size) -> tuple[int, ...]:
    """A parameter's shape as a vector or a matrix."""
    if len(shape) < 2:
        return (math.prod(shape),)
    return (shape[0], math.prod(shape[1:]))


def _gaussian(rank: int, axis: int, generator: torch.Generator) -> Tensor:
    """[rank, axis] with E[P'P] = 1; the identity where the axis is no longer than the rank."""
    return torch.eye(axis) if axis <= rank else torch.randn(rank, axis, generator=generator) / math.sqrt(rank)
