from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from ippo.influence.forward_mode import ForwardMode, attention, elementwise, embedding

# Keyword arguments of the attention; queries are [2, 4, 5, 8].
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.7},
    "bias": {"attn_mask": torch.linspace(-3, 3, 50).view(2, 1, 5, 5)},
    "left padding": {
        "attn_mask": torch.ones(5, 5).tril().bool() & (torch.arange(5) >= torch.tensor([0, 2]).view(2, 1, 1, 1))
    },
}


def dual(*pairs: tuple[Tensor, Tensor]) -> list[Tensor]:
    return [forward_ad.make_dual(primal, tangent) for primal, tangent in pairs]


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("heads", [4, 2], ids=["own keys", "shared keys"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_attention_and_its_tangent_are_torchs(options: dict[str, Any], heads: int, dtype: torch.dtype) -> None:
    shapes = ((2, 4, 5, 8), (2, heads, 5, 8), (2, heads, 5, 8))
    pairs = [(torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)) for shape in shapes]
    options = {**options, "enable_gqa": heads < 4}
    mask = options.get("attn_mask")
    read = torch.ones(1, dtype=torch.bool)
    if mask is not None and mask.dtype == torch.bool:
        read = mask.any(-1, keepdim=True)  # a padding row sees nothing, and nothing reads it
    elif mask is not None:
        options["attn_mask"] = mask.to(dtype)
    with torch.no_grad(), forward_ad.dual_level():
        arguments: Any = dual(*pairs)
        with sdpa_kernel(SDPBackend.MATH):
            expected = forward_ad.unpack_dual(functional.scaled_dot_product_attention(*arguments, **options))
        found = forward_ad.unpack_dual(attention(*arguments, **options))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours * read, theirs.nan_to_num() * read, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("func", [torch.add, torch.sub, torch.mul, torch.div], ids=lambda func: func.__name__)
@pytest.mark.parametrize(
    "other", [torch.tensor([[0.5], [-2.0]]), torch.rand(3, 2, 4) + 1, 0.3], ids=["column", "whole", "number"]
)
@pytest.mark.parametrize("order", ["constant last", "constant first", "both dual"])
def test_what_a_constant_is_joined_with_keeps_torchs_tangent(func: Any, other: Any, order: str) -> None:
    if order != "constant last":
        other = torch.as_tensor(other)
    with torch.enable_grad(), forward_ad.dual_level():
        primal, tangent = torch.randn(2, 4), torch.randn(2, 4)
        one = forward_ad.make_dual(primal, tangent.clone())
        if order == "both dual":
            (other,) = dual((other, torch.ones_like(other)))
        operands = (other, one) if order == "constant first" else (one, other)
        expected = forward_ad.unpack_dual(func(*operands))
        joined = elementwise(func, *operands)
        found = forward_ad.unpack_dual(joined)
        assert torch.equal(found.primal, expected.primal)
        assert torch.equal(found.tangent, expected.tangent)
        joined.mul_(2.0)
        assert torch.equal(forward_ad.unpack_dual(one).tangent, tangent)  # which is not written over


@pytest.mark.parametrize("padding", [0, 3, -1, None])
def test_embedding_has_the_tangent_that_goes_with_its_gradient(padding: int | None) -> None:
    ids, weight, along = torch.tensor([[0, 3, 1], [4, 0, 4]]), torch.randn(5, 2), torch.randn(5, 2)
    with torch.no_grad(), forward_ad.dual_level():
        rows, tangent = forward_ad.unpack_dual(embedding(ids, forward_ad.make_dual(weight, along), padding))
    torch.testing.assert_close(rows, functional.embedding(ids, weight, padding))
    leaf = weight.clone().requires_grad_()
    functional.embedding(ids, leaf, padding).backward(cotangent := torch.randn(2, 3, 2))
    assert leaf.grad is not None
    torch.testing.assert_close((tangent * cotangent).sum(), (leaf.grad * along).sum())


def test_the_mode_replaces_both_inside_modules_and_gives_them_back() -> None:
    layer = torch.nn.Embedding(5, 8, padding_idx=0)
    ids = torch.tensor([[0, 1, 2]])
    with torch.enable_grad(), forward_ad.dual_level():
        weight = forward_ad.make_dual(layer.weight.detach(), torch.ones(5, 8))

        def run() -> Tensor:
            rows = torch.func.functional_call(layer, {"weight": weight}, (ids,))
            return functional.scaled_dot_product_attention(*[rows.unsqueeze(1)] * 3)

        with ForwardMode():
            value, tangent = forward_ad.unpack_dual(run())
        torch.testing.assert_close(value, functional.scaled_dot_product_attention(*[layer(ids).unsqueeze(1)] * 3))
        assert tangent is not None
        with sdpa_kernel(SDPBackend.MATH):
            assert not torch.allclose(tangent, forward_ad.unpack_dual(run()).tangent)  # torch moves the padding row


@pytest.mark.parametrize("constant", ["detach", "data", "no_grad"])
def test_what_has_no_gradient_has_no_tangent(constant: str) -> None:
    """As in the ratio of a policy to itself, exp(logp - logp.detach()), whose derivative is not 0."""
    with torch.enable_grad(), forward_ad.dual_level(), ForwardMode():
        x = forward_ad.make_dual(torch.tensor([2.0]), torch.tensor([1.0]))
        with torch.set_grad_enabled(constant != "no_grad"):
            fixed = {"detach": x.detach, "data": lambda: x.data, "no_grad": lambda: x * 1}[constant]()
        tangent = forward_ad.unpack_dual((x - fixed).exp()).tangent
    assert tangent is not None
    assert tangent.tolist() == [1.0]
