from __future__ import annotations

import pytest
import torch

from ippo.functional.layout import at_least_float32, check_axes, response_lengths, zero_padding


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


@pytest.mark.parametrize("row", [[0, 1, 1], [1, 0, 1], [0, 0, 1]])
def test_lengths_of_responses_with_padding_on_the_left_or_holes_are_refused(row: list[int]) -> None:
    with pytest.raises(ValueError, match="row 1 has a token after padding: pad responses on the right"):
        response_lengths(torch.tensor([[1, 1, 0], row]))


def test_lengths_of_bools_and_of_no_response_at_all() -> None:
    assert response_lengths(torch.tensor([[True, True], [False, False]])).tolist() == [2, 0]
    assert response_lengths(torch.zeros(0, 3)).tolist() == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.int64, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_at_least_float32_never_takes_precision_away(given: torch.dtype, expected: torch.dtype) -> None:
    assert at_least_float32(torch.ones(2, dtype=given)).dtype == expected
