from __future__ import annotations

import math

import pytest
import torch

from ippo.functional import preference_loss


def test_by_hand() -> None:
    chosen, rejected = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-2.0, -1.0, -0.5])
    expected = [math.log(1 + math.exp(0.5 - 2 * gap)) for gap in (1.0, -1.0, 0.0)]
    torch.testing.assert_close(preference_loss(chosen, rejected), torch.tensor(expected))


def test_its_gradient_is_that_of_the_gap_as_often_as_the_pair_is_not_told_apart() -> None:
    chosen, rejected = (torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (-1.0, -1.5))
    preference_loss(chosen, rejected, beta=3.0, margin=1.0).sum().backward()
    missed = 1 - 1 / (1 + math.exp(-(3.0 * 0.5 - 1.0)))
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert float(chosen.grad) == pytest.approx(-3.0 * missed)
    assert float(rejected.grad) == pytest.approx(3.0 * missed)


def test_stays_finite_where_a_pair_is_hopeless() -> None:
    assert preference_loss(torch.tensor([-1e4]), torch.tensor([0.0])).tolist() == [2e4 + 0.5]


@pytest.mark.parametrize(("beta", "margin"), [(0.0, 0.0), (-1.0, 0.0), (1.0, -0.1)])
def test_refuses_options_out_of_range(beta: float, margin: float) -> None:
    with pytest.raises(ValueError, match="beta must be above 0 and the margin at least 0"):
        preference_loss(torch.zeros(1), torch.zeros(1), beta, margin)


def test_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match="rejected"):
        preference_loss(torch.zeros(2), torch.zeros(3))
