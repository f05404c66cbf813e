"""Layers whose gradients are formed a row each, because they are short."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, rms_norm

from ippo.influence.layer_formulas.layer import Arguments, LayerFormula, first_input


class RowsFormula(LayerFormula):
    """A layer whose gradients are formed a row each, because they are short."""

    def is_short(self, arguments: Arguments, b: Tensor) -> bool:
        return True

    def dots(self, arguments: Arguments, b: Tensor, direction: Mapping[str, Tensor]) -> Tensor:
        return row_dots(self.row_gradients(arguments, b), self.along(direction))

    def gradients(self, arguments: Arguments, b: Tensor, weights: Tensor) -> dict[str, Tensor]:
        return weighted_sum(self.row_gradients(arguments, b), weights)


class ScaleFormula(RowsFormula):
    """A layer that uses its parameters elementwise, as norms scale: each row may be given parameters of its own, whose
    gradients then come apart in one backward."""

    def row_gradients(self, arguments: Arguments, b: Tensor) -> dict[str, Tensor]:
        args, kwargs = arguments
        rows = {own: self._per_row(value, b).requires_grad_() for own, value in self.parameters.items()}
        with torch.enable_grad():
            found = torch.autograd.grad(self._forward(rows, args, kwargs), list(rows.values()), b)
        return {own: part.reshape(len(b), *self.parameters[own].shape) for own, part in zip(rows, found, strict=True)}

    @classmethod
    def fits(cls, formula: LayerFormula, arguments: Arguments, b: Tensor, rows: Mapping[str, Tensor]) -> bool:
        """Whether the layer gives the gradients a row that another way gave."""
        try:
            found = cls(formula.name, formula.module, formula.names).row_gradients(arguments, b)
        except RuntimeError:  # it does not take such parameters
            return False
        return all(_close(found[own], part) for own, part in rows.items())

    @staticmethod
    def _per_row(value: Tensor, b: Tensor) -> Tensor:
        """[n, 1, ..., d], which broadcasts over the output as [d] does."""
        return value.expand(len(b), *(1 for _ in range(b.dim() - 1 - value.dim())), *value.shape)


class NormFormula(RowsFormula):
    """``nn.LayerNorm`` and ``nn.RMSNorm``, whose kernels take no other shape of parameters."""

    def row_gradients(self, arguments: Arguments, b: Tensor) -> dict[str, Tensor]:
        a, norm = first_input(arguments), self.module
        assert isinstance(norm, nn.LayerNorm | nn.RMSNorm)
        if isinstance(norm, nn.RMSNorm):
            unit = rms_norm(a, list(norm.normalized_shape), None, norm.eps)
        else:
            unit = layer_norm(a, norm.normalized_shape, None, None, norm.eps)
        whole = {"weight": lambda: b.float() * unit, "bias": lambda: b.float()}
        axes = tuple(range(1, b.dim() - len(norm.normalized_shape)))
        return {own: whole[own]().sum(axes) if axes else whole[own]() for own in self.names}


def row_dots(rows: Mapping[str, Tensor], along: Mapping[str, Tensor]) -> Tensor:
    """[n] dot products of [n, ...] gradients with a direction, over the parameters that it has."""
    return torch.stack([rows[own].float().flatten(1) @ part.float().flatten() for own, part in along.items()]).sum(0)


def weighted_sum(rows: Mapping[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
    """The sum of [n, ...] gradients times [n] weights."""
    return {own: (weights @ part.float().flatten(1)).view(part.shape[1:]) for own, part in rows.items()}


def _close(found: Tensor, expected: Tensor) -> bool:
    """Where all is zero nothing can be told."""
    tolerance = 1e-4 if found.dtype in (torch.float32, torch.float64) else 0.05
    largest = expected.abs().max()
    return bool(largest > 0) and bool(((found - expected).abs() <= tolerance * largest).all())
