"""Any layer at all, differentiated by torch; and the shapes that all formulas share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.utils import _pytree as pytree

from ippo.influence.forward_mode import ForwardMode

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
    def present(self) -> dict[str, nn.Parameter]:
        """The layer's own trainable parameters as they are just now, by their name in ``trainable(module)``. Those that
        FSDP2 holds in parts are others while the layer runs."""
        return {name: self.module._parameters[own] for own, name in self.names.items()}  # type: ignore[misc]

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
            values = self.parameters
            duals = {own: forward_ad.make_dual(values[own], part.to(values[own])) for own, part in along.items()}
            tangent = forward_ad.unpack_dual(self._forward(duals, args, kwargs))[1]
        return b.new_zeros(len(b), dtype=torch.float32) if tangent is None else summed_products(tangent.clone(), b)

    def gradients(self, arguments: Arguments, b: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """The gradient of every own parameter: the sum of the rows' gradients times [n] ``weights``."""
        args, kwargs = arguments
        b = b * like(weights, b)
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


def first_input(arguments: Arguments) -> Tensor:
    """What a layer with one input got, by position or by name."""
    args, kwargs = arguments
    return args[0] if args else next(iter(kwargs.values()))


def like(weights: Tensor, values: Tensor) -> Tensor:
    """[n] -> [n, 1, ...], to multiply [n, ...] values by."""
    return weights.to(values.dtype).view(-1, *(1 for _ in values.shape[1:]))


def in_time(values: Tensor) -> Tensor:
    """[n, ..., d] -> [n, t, d], with t = 1 where there is no time axis."""
    return values.unsqueeze(1) if values.dim() == 2 else values.flatten(1, -2)


def summed_products(scratch: Tensor, other: Tensor) -> Tensor:
    """[n] float32 dot products of the rows, accumulated in float32. Overwrites ``scratch``: memory costs more than
    arithmetic here."""
    return scratch.float().mul_(other).flatten(1).sum(1)


def _has_rows(leaf: Any, n: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == n
