from __future__ import annotations

import pytest
import torch

from ippo.functional.layout import check_axes, zero_padding


def test_check_axes_accepts_letters_that_agree() -> None:
    check_axes("n nt ntv", scores=torch.zeros(2), mask=torch.zeros(2, 3), logits=torch.zeros(2, 3, 5))


def test_check_axes_names_the_argument_and_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"ids must have shape \[n=2, t=3\], got \[2, 4\]"):
        check_axes("ntv nt", logits=torch.zeros(2, 3, 5), ids=torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"scores must have shape \[n\], got \[2, 1\]"):
        check_axes("n", scores=torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"mask must have shape \[n=2, t\], got \[2\]"):
        check_axes("n nt", scores=torch.zeros(2), mask=torch.zeros(2))


def test_zero_padding_replaces_values_gradients_and_tangents() -> None:
    mask = torch.tensor([[1, 0]])
    values = torch.tensor([[2.0, float("nan")]], requires_grad=True)

    result = zero_padding(values, mask)
    result.backward(torch.tensor([[5.0, float("nan")]]))
    tangents = torch.tensor([[7.0, float("nan")]])
    tangent = torch.func.jvp(lambda v: zero_padding(v, mask), (values.detach(),), (tangents,))[1]

    assert result.tolist() == [[2.0, 0.0]]
    assert values.grad is not None
    assert values.grad.tolist() == [[5.0, 0.0]]
    assert tangent.tolist() == [[7.0, 0.0]]
