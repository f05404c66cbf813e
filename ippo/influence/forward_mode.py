"""Forward-mode differentiation that agrees with a backward pass, where torch's own does not.

*Fused attention* has none at all, and torch's plain attention differentiates its softmax by computing it twice.
*Embeddings* with a ``padding_idx`` give that row no gradient in a backward pass, but a tangent in a forward one: an
episode that holds the padding token would get another score than its gradient says.
*Constants* in sums and products are right there, but slow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only


class ForwardMode(TorchFunctionMode):
    """While active, these operations are computed by the formulas below, and what is a constant for a backward pass is
    one here: torch's forward mode differentiates through ``detach`` and ``no_grad``. Enter it with gradients enabled.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DETACHING or not torch.is_grad_enabled():
            args, kwargs = tree_map_only(Tensor, _primal, (args, kwargs))
        elif func in _ELEMENTWISE and len(args) == 2 and not kwargs:
            return elementwise(func, *args)
        return _OURS.get(func, func)(*args, **kwargs)


@contextmanager
def plain_kernels(module: nn.Module) -> Iterator[None]:
    """Kernels that have a forward derivative, where :class:`ForwardMode` does not see the fused ones: inside
    ``nn.MultiheadAttention`` attention, on a CPU ``nn.LSTM``, on a GPU all recurrent layers."""
    recurrent = any(isinstance(part, nn.RNNBase) for part in module.modules())
    libraries: list[Any] = [torch.backends.mkldnn, torch.backends.cudnn] if recurrent else []
    enabled = [library.enabled for library in libraries]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for library in libraries:
            library.enabled = False
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for library, before in zip(libraries, enabled, strict=True):
            library.enabled = before


def _primal(tensor: Tensor) -> Tensor:
    return forward_ad.unpack_dual(tensor).primal


def elementwise(func: Callable[..., Tensor], left: Any, right: Any) -> Tensor:
    """A sum, difference, product or quotient of two tensors or numbers, of which one may be a constant.

    A constant has a tangent of zeros for torch, whose sums and products it works out in Python, at many times the cost
    of the operation itself in a small model.
    """
    (x, dx), (y, dy) = _parts(left), _parts(right)
    if (dx is None) == (dy is None) or (dx is None and func not in _COMMUTATIVE):
        return func(left, right)
    value = func(x, y)
    if func in _SUMS:  # a copy, so that the result may be written over
        tangent = (dy if dx is None else dx).expand_as(value).clone()
    else:
        tangent = func(x, dy) if dx is None else func(dx, y)
    return forward_ad.make_dual(value, tangent)


def _parts(value: Any) -> tuple[Any, Any]:
    """Of a dual tensor; what is none has no second part."""
    return forward_ad.unpack_dual(value) if isinstance(value, Tensor) else (value, None)


def embedding(ids: Tensor, weight: Tensor, padding_idx: int | None = None, *options: Any, **more: Any) -> Tensor:
    """``torch.nn.functional.embedding`` whose ``padding_idx`` row has no tangent, as it has no gradient.

    Args:
        ids: [...] row numbers.
        weight: [v, d], possibly dual.
        padding_idx: the row that is not learned; negative counts from the end.
        options, more: passed on.

    Returns:
        [..., d].
    """
    rows = functional.embedding(ids, weight, padding_idx, *options, **more)
    if padding_idx is None:
        return rows
    fixed = functional.embedding(ids, forward_ad.unpack_dual(weight).primal, padding_idx, *options, **more)
    return torch.where((ids == padding_idx % weight.shape[0]).unsqueeze(-1), fixed, rows)


class FixedPadding(TorchFunctionMode):
    """The same for parameters that are moved instead: the ``padding_idx`` row stays where it was.

    Args:
        origins: where each moved parameter, by its ``id``, came from.
    """

    def __init__(self, origins: Mapping[int, Tensor]) -> None:
        self.origins = origins

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        rows = func(*args, **(kwargs or {}))
        if func is not functional.embedding:
            return rows
        ids, weight, padding_idx = args[0], args[1], (kwargs or {}).get("padding_idx", args[2] if args[2:] else None)
        if padding_idx is None or id(weight) not in self.origins:
            return rows
        fixed = functional.embedding(ids, self.origins[id(weight)])
        return torch.where((ids == padding_idx % weight.shape[0]).unsqueeze(-1), fixed, rows)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``torch.nn.functional.scaled_dot_product_attention`` without dropout, written out.

    Args:
        query: [..., heads, l, d].
        key, value: [..., heads or fewer, s, d].
        attn_mask: [..., l, s], bool (True may be seen) or added to the scores.
        dropout_p: ignored: scores are taken with dropout off.
        is_causal: query i sees keys up to i.
        scale: of the scores; 1 / sqrt(d) when None.
        enable_gqa: a key and value head may serve several query heads.

    Returns:
        [..., heads, l, d], in the dtype of ``value``.

    Example:
        >>> qkv = torch.randn(3, 2, 4, 5, 8)
        >>> fused = torch.nn.functional.scaled_dot_product_attention(*qkv, is_causal=True)
        >>> torch.allclose(attention(*qkv, is_causal=True), fused, atol=1e-6)
        True
    """
    if enable_gqa:
        shared = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(shared, -3), value.repeat_interleave(shared, -3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    precise = torch.promote_types(query.dtype, torch.float32)
    scores = (elementwise(torch.mul, query, factor) @ key.transpose(-2, -1)).to(precise)
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = elementwise(torch.add, scores, _as_bias(seen))
    if attn_mask is not None:
        bias = _as_bias(attn_mask) if attn_mask.dtype == torch.bool else attn_mask
        scores = elementwise(torch.add, scores, bias)
    shares: Tensor = _Softmax.apply(scores)
    mixed = shares.to(value.dtype) @ value
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # a query that sees no key gets zeros, as there
        mixed = torch.where(attn_mask.any(-1, keepdim=True), mixed, 0)
    return mixed


def _as_bias(seen: Tensor) -> Tensor:
    """0 where a key may be seen, else the lowest number: -inf would turn a row without any key into NaN."""
    return torch.zeros_like(seen, dtype=torch.float32).masked_fill(~seen, torch.finfo(torch.float32).min)


class _Softmax(torch.autograd.Function):
    """Softmax over the last axis; its tangent is p (dx - <p, dx>)."""

    @staticmethod
    def forward(scores: Tensor) -> Tensor:
        return scores.softmax(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_forward(output)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (shares,) = ctx.saved_tensors
        product = shares * tangent
        return torch.addcmul(product, shares, product.sum(-1, keepdim=True), value=-1)


_DETACHING = (Tensor.detach, torch.detach, Tensor.data.__get__)  # type: ignore[attr-defined]

_ADD: tuple[Any, ...] = (torch.add, Tensor.add, Tensor.__add__)
_SUBTRACT: tuple[Any, ...] = (torch.sub, Tensor.sub, Tensor.__sub__)
_MULTIPLY: tuple[Any, ...] = (torch.mul, Tensor.mul, Tensor.__mul__)
_DIVIDE: tuple[Any, ...] = (torch.div, Tensor.div, Tensor.__truediv__)
_SUMS = {*_ADD, *_SUBTRACT}
_COMMUTATIVE = {*_ADD, *_MULTIPLY}
_ELEMENTWISE = {*_ADD, *_SUBTRACT, *_MULTIPLY, *_DIVIDE}

_OURS: dict[Callable[..., Any], Callable[..., Any]] = {
    functional.embedding: embedding,
    functional.scaled_dot_product_attention: attention,
}
