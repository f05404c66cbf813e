"""What a layer's own parameters do to a gradient: the formulas that every hook-based scorer is made of.

A layer here is a module that owns trainable parameters. Its inputs ``a`` and the gradient ``b`` of its output are all
that is needed to know what it adds to an episode's gradient. Linear layers and embeddings have formulas of their own,
which never form a gradient per episode; that of a norm is so short that it is formed; any other layer (value
heads, convolutions) is differentiated by torch, alone, with its inputs held fixed. Rows of ``a`` and ``b`` are
episodes: both start with axis n.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.functional import layer_norm, rms_norm
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils import _pytree as pytree

from ippo.influence.forward_mode import ForwardMode
from ippo.influence.parameters import trainable

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a layer's forward."""


class LayerFormula:
    """Any layer at all, differentiated by torch.

    Args:
        name: of the module inside the scored one.
        module: the layer.
        names: the layer's own trainable parameters, by their name in the layer and in ``trainable(module)``.

    Attributes:
        runs: how often the layer has run since it is watched.
    """

    def __init__(self, name: str, module: nn.Module, names: Mapping[str, str]) -> None:
        self.name, self.module, self.names = name, module, dict(names)
        self.runs = 0

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The layer's own trainable parameters, without their history."""
        return {own: getattr(self.module, own).detach() for own in self.names}

    def along(self, direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part of a direction that belongs to this layer, by the layer's own names."""
        return {own: direction[name] for own, name in self.names.items() if name in direction}

    def is_short(self, arguments: Arguments, b: Tensor) -> bool:
        """Whether its gradients, a row each, are cheap to form and no longer than what they are formed from."""
        return False

    def dots(self, arguments: Arguments, b: Tensor, direction: Mapping[str, Tensor]) -> Tensor:
        """[n] <b_i, derivative of the output along the direction>: the layer's part of every score."""
        args, kwargs = arguments
        along = self.along(direction)
        with torch.enable_grad(), forward_ad.dual_level(), ForwardMode():
            duals = {own: forward_ad.make_dual(self.parameters[own], tangent) for own, tangent in along.items()}
            tangent = forward_ad.unpack_dual(self._forward(duals, args, kwargs))[1]
        return b.new_zeros(len(b), dtype=torch.float32) if tangent is None else _row_dots(tangent.clone(), b)

    def gradients(self, arguments: Arguments, b: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """The gradient of every own parameter: the sum of the rows' gradients times [n] ``weights``."""
        args, kwargs = arguments
        b = b * _like(weights, b)
        parameters = {own: value.requires_grad_() for own, value in self.parameters.items()}
        with torch.enable_grad():
            output = self._forward(parameters, args, kwargs)
            if not output.requires_grad:  # it reads none of them
                return {own: torch.zeros_like(value) for own, value in parameters.items()}
            found = torch.autograd.grad(output, list(parameters.values()), b, allow_unused=True)
        return {
            own: torch.zeros_like(value) if gradient is None else gradient
            for (own, value), gradient in zip(parameters.items(), found, strict=True)
        }

    def row_gradients(self, arguments: Arguments, b: Tensor) -> dict[str, Tensor]:
        """[n, ...] the same, for each row apart."""
        leaves, structure = pytree.tree_flatten(arguments)
        axes = [0 if _has_rows(leaf, len(b)) else None for leaf in leaves]

        def one_row(b: Tensor, *row: Any) -> dict[str, Tensor]:
            restored = [leaf if axis is None else leaf.unsqueeze(0) for leaf, axis in zip(row, axes, strict=True)]
            args, kwargs = pytree.tree_unflatten(restored, structure)
            pull: Any = torch.func.vjp(lambda p: self._forward(p, args, kwargs), self.parameters)[1]
            return pull(b.unsqueeze(0))[0]

        return torch.func.vmap(one_row, in_dims=(0, *axes))(b, *leaves)

    def _forward(self, parameters: Mapping[str, Tensor], args: Any, kwargs: Any) -> Tensor:
        """The layer's own forward, without the hooks around it, at other parameters."""
        swaps = {f"layer.{own}": value for own, value in parameters.items()}
        return functional_call(_Unhooked(self.module), swaps, args, kwargs, tie_weights=False)

    def squares(self, arguments: Arguments, b: Tensor) -> Tensor | None:
        """[n] squared length of each row's gradient, where it comes cheaper than the gradient itself."""
        return None


class _Unhooked(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.forward(*args, **kwargs)


class LinearFormula(LayerFormula):
    """``nn.Linear``, and ``Conv1D``, which stores the same weight transposed."""

    @property
    def transposed(self) -> bool:
        return not isinstance(self.module, nn.Linear)

    def dots(self, arguments: Arguments, b: Tensor, direction: Mapping[str, Tensor]) -> Tensor:
        """sum_t b_t' V a_t, with the product taken on the narrower side."""
        a, along = _input(arguments), self.along(direction)
        scores = b.new_zeros(len(b), dtype=torch.float32)
        if "weight" in along:
            v = (along["weight"].T if self.transposed else along["weight"]).to(b)  # [out, in]
            scores = _row_dots(b @ v, a) if v.shape[1] <= v.shape[0] else _row_dots(a.to(b) @ v.T, b)
        if "bias" in along:
            scores = scores + self.bias_gradients(b) @ along["bias"].float()
        return scores

    def is_short(self, arguments: Arguments, b: Tensor) -> bool:
        left, right = (factor.shape for factor in self._factors(arguments, b))
        return left[2] * right[2] <= left[1] * (left[2] + right[2])

    def gradients(self, arguments: Arguments, b: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Rows of weight 0 leave before the product, and the narrower factor takes the weights."""
        kept = weights.nonzero().flatten()
        left, right = (factor.index_select(0, kept) for factor in self._factors(arguments, b))
        scale = _like(weights[kept], left)
        left, right = (left * scale, right) if left.shape[2] <= right.shape[2] else (left, right * scale)
        found = {"weight": left.flatten(0, 1).T @ right.flatten(0, 1)} if "weight" in self.names else {}
        return {**found, "bias": weights @ self.bias_gradients(b)} if "bias" in self.names else found

    def row_gradients(self, arguments: Arguments, b: Tensor) -> dict[str, Tensor]:
        left, right = self._factors(arguments, b)
        found = {"weight": left.transpose(1, 2) @ right} if "weight" in self.names else {}
        return {**found, "bias": self.bias_gradients(b)} if "bias" in self.names else found

    def squares(self, arguments: Arguments, b: Tensor) -> Tensor | None:
        """sum_ts (b_t . b_s) (a_t . a_s)"""
        if self.is_short(arguments, b):
            return None
        found = _row_dots(*(factor.float() @ factor.float().mT for factor in self._factors(arguments, b)))
        found = found if "weight" in self.names else torch.zeros_like(found)
        return found + self.bias_gradients(b).square().sum(1) if "bias" in self.names else found

    def bias_gradients(self, b: Tensor) -> Tensor:
        """[n, out] sum_t b_t"""
        return _in_time(b).sum(1, dtype=torch.float32)

    def sketch(self, arguments: Arguments, b: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """[n, k, m] ``rows @ weight gradient @ columns.T`` for every episode, without forming the gradient.

        Args:
            arguments, b: of the layer.
            rows: [k, the weight's first axis].
            columns: [m, its second].
        """
        left, right = self._factors(arguments, b)
        return (left.float() @ rows.T).transpose(1, 2) @ (right.float() @ columns.T)

    def _factors(self, arguments: Arguments, b: Tensor) -> tuple[Tensor, Tensor]:
        """[n, t, .] twice: the weight's gradient is the sum over t of their outer products."""
        a, b = _in_time(_input(arguments)).to(b), _in_time(b)
        return (a, b) if self.transposed else (b, a)


class EmbeddingFormula(LayerFormula):
    """``nn.Embedding``; the row of its ``padding_idx`` is never trained, so never scored."""

    def dots(self, arguments: Arguments, b: Tensor, direction: Mapping[str, Tensor]) -> Tensor:
        """sum_t b_t . V[id_t]"""
        ids, b = self._trained(arguments, b)
        return _row_dots(self.along(direction)["weight"][ids], b)

    def gradients(self, arguments: Arguments, b: Tensor, weights: Tensor) -> dict[str, Tensor]:
        ids, b = self._trained(arguments, b)
        table = b.new_zeros(self.parameters["weight"].shape)
        return {"weight": table.index_add_(0, ids.flatten(), (b * _like(weights, b)).flatten(0, 1))}

    def row_gradients(self, arguments: Arguments, b: Tensor) -> dict[str, Tensor]:
        ids, b = self._trained(arguments, b)
        table = b.new_zeros((len(b), *self.parameters["weight"].shape))
        return {"weight": table.scatter_add_(1, ids.unsqueeze(-1).expand_as(b), b)}

    def squares(self, arguments: Arguments, b: Tensor) -> Tensor:
        """sum_ts (b_t . b_s) over places with the same id"""
        ids, b = self._trained(arguments, b)
        return _row_dots(b.float() @ b.float().mT, (ids.unsqueeze(1) == ids.unsqueeze(2)).float())

    def sketch(self, arguments: Arguments, b: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """See :meth:`LinearFormula.sketch`; a token's one-hot vector picks a column of ``rows``."""
        ids, b = self._trained(arguments, b)
        return rows.T[ids].transpose(1, 2) @ (b.float() @ columns.T)

    def _trained(self, arguments: Arguments, b: Tensor) -> tuple[Tensor, Tensor]:
        """[n, t] ids and [n, t, d] output gradients, zero for the padding token."""
        ids, b = _input(arguments).reshape(len(b), -1), _in_time(b)
        padding = getattr(self.module, "padding_idx", None)
        return ids, b if padding is None else b.masked_fill((ids == padding).unsqueeze(-1), 0)


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
        a, norm = _input(arguments), self.module
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


Kinds = Mapping[str, type[LayerFormula]]
"""Of layers without a formula of their own, by name, what a trial found them to be."""

UNTRIED: Kinds = {}


def find_layer_formulas(module: nn.Module, kinds: Kinds = UNTRIED) -> list[LayerFormula]:
    """Every module that owns a trainable parameter.

    Args:
        module: the scored one.
        kinds: see :data:`Kinds`.
    """
    canonical = {id(parameter): name for name, parameter in trainable(module).items()}
    formulas = [formula for name, part in module.named_modules() if (formula := _site(name, part, canonical))]
    return [kinds[one.name](one.name, one.module, one.names) if one.name in kinds else one for one in formulas]


def why_not(formula: LayerFormula, shape: torch.Size, n: int, axes: int) -> str | None:
    """Why the rows of a layer's output are not the ``n`` episodes; None if they are.

    Args:
        formula: the layer.
        shape: of its output.
        n: episodes in the batch.
        axes: the most axes that any layer's output has.
    """
    if isinstance(formula.module, ParametrizationList):
        return "it computes another layer's weight"
    if len(shape) < 2 or shape[0] != n:
        return f"its output has shape {tuple(shape)}, which does not start with the batch's {n} episodes"
    if isinstance(formula, EmbeddingFormula) and len(shape) == 2 < axes:
        return f"its output of shape {tuple(shape)} has a row a position or a row an episode, and which one is not told"
    return None


def _site(name: str, module: nn.Module, canonical: Mapping[int, str]) -> LayerFormula | None:
    own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
    names = {local: canonical[id(parameter)] for local, parameter in own.items() if id(parameter) in canonical}
    if not names:
        return None
    library = sys.modules.get("transformers.pytorch_utils")  # without it there is no Conv1D to be met
    conv1d: list[tuple[Any, type[LayerFormula]]] = [(library.Conv1D, LinearFormula)] if library else []
    for plain, kind in [*_FORMULAS, *conv1d]:
        # A subclass with a forward of its own (a scaled embedding, a wrapped layer) is not that formula any more.
        if type(module).forward is plain.forward and "forward" not in vars(module):
            return kind(name, module, names)
    return LayerFormula(name, module, names)


def _input(arguments: Arguments) -> Tensor:
    """What a layer with one input got, by position or by name."""
    args, kwargs = arguments
    return args[0] if args else next(iter(kwargs.values()))


_FORMULAS: tuple[tuple[type[nn.Module], type[LayerFormula]], ...] = (
    (nn.Linear, LinearFormula),
    (nn.Embedding, EmbeddingFormula),
    (nn.LayerNorm, NormFormula),
    (nn.RMSNorm, NormFormula),
)


def _has_rows(leaf: Any, n: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == n


def _like(weights: Tensor, values: Tensor) -> Tensor:
    """[n] -> [n, 1, ...], to multiply [n, ...] values by."""
    return weights.to(values.dtype).view(-1, *(1 for _ in values.shape[1:]))


def _close(found: Tensor, expected: Tensor) -> bool:
    """Where all is zero nothing can be told."""
    tolerance = 1e-4 if found.dtype in (torch.float32, torch.float64) else 0.05
    largest = expected.abs().max()
    return bool(largest > 0) and bool(((found - expected).abs() <= tolerance * largest).all())


def _in_time(values: Tensor) -> Tensor:
    """[n, ..., d] -> [n, t, d], with t = 1 where there is no time axis."""
    return values.unsqueeze(1) if values.dim() == 2 else values.flatten(1, -2)


def _row_dots(scratch: Tensor, other: Tensor) -> Tensor:
    """[n] float32 dot products of the rows, accumulated in float32. Overwrites ``scratch``: memory costs more than
    arithmetic here."""
    return scratch.float().mul_(other).flatten(1).sum(1)
