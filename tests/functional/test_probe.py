"""The linear probe of score signs, against autograd, against fits without a row, and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ippo.functional import (
    fit_probe,
    keep_where_alike_agree,
    left_out_chances,
    log_loss,
    narrowed,
    standardised,
)


def noisy(n: int = 80, d: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, d, generator=generator)
    agrees = torch.rand(n, generator=generator) < (2 * features[:, 0]).sigmoid()
    return standardised(features), agrees


@pytest.mark.parametrize("penalty", [0.01, 0.5, 100.0])
def test_at_the_fit_the_penalised_likelihood_has_no_slope(penalty: float) -> None:
    rows, agrees = noisy()
    weights = fit_probe(rows, agrees, penalty).requires_grad_(True)
    logits = rows @ weights[:-1] + weights[-1]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, agrees.double(), reduction="sum")
    (slope,) = torch.autograd.grad(loss + penalty / 2 * weights[:-1].square().sum(), weights)
    assert slope.abs().max() < 1e-6


def test_signs_that_features_part_wholly_end_in_a_finite_fit() -> None:
    features = torch.tensor([[-1.0]] * 20 + [[1.0]] * 20)
    agrees = torch.arange(40) >= 20
    weights = fit_probe(standardised(features), agrees, 1e-3)
    assert weights.isfinite().all()
    assert (standardised(features) @ weights[:-1] + weights[-1] > 0).tolist() == agrees.tolist()


def test_a_left_out_chance_is_near_that_of_a_fit_without_the_row() -> None:
    rows, agrees = noisy()
    found = left_out_chances(rows, agrees, fit_probe(rows, agrees, 0.5), 0.5)
    for row in range(0, 80, 7):
        others = torch.arange(80) != row
        weights = fit_probe(rows[others], agrees[others], 0.5)
        refitted = (rows[row] @ weights[:-1] + weights[-1]).sigmoid()
        assert found[row].item() == pytest.approx(refitted.item(), abs=0.01)


def test_a_rows_own_sign_lowers_what_is_foretold_of_it() -> None:
    """Of pure noise the fit believes each sign a little; left out, no row does."""
    generator = torch.Generator().manual_seed(1)
    rows, agrees = standardised(torch.randn(60, 20, generator=generator)), torch.arange(60) % 2 == 0
    weights = fit_probe(rows, agrees, 0.1)
    fitted = (rows @ weights[:-1] + weights[-1]).sigmoid()
    assert log_loss(fitted, agrees) < math.log(2) < log_loss(left_out_chances(rows, agrees, weights, 0.1), agrees)


def test_a_column_that_never_moves_says_nothing() -> None:
    rows = standardised(torch.tensor([[1e6, 1.0], [1e6, 2.0], [1e6, 4.0]]))
    assert (rows[:, 0] == 0).all()
    assert rows[:, 1].square().mean().item() == pytest.approx(1 / 2)  # variance 1, over two columns


def test_a_projection_keeps_distances_and_is_always_the_same() -> None:
    features = torch.randn(20, 4000, generator=torch.Generator().manual_seed(3))
    short = narrowed(features, 512)
    assert torch.equal(short, narrowed(features, 512))
    ratio = torch.pdist(short) / torch.pdist(features)
    assert ratio.mean().item() == pytest.approx(1, abs=0.02)
    assert ratio.std() < 0.05


class TestWhatStays:
    def test_unrewarded_answers_stay_by_their_own_score_alone(self) -> None:
        scores, rewarded = torch.tensor([1.0, -1.0, 1.0]), torch.tensor([False, False, True])
        kept = keep_where_alike_agree(scores, rewarded, torch.tensor([0.0, 1.0, 0.9]), 0.5)
        assert kept.tolist() == [True, False, True]

    def test_the_mean_is_of_rewarded_answers_that_have_a_score(self) -> None:
        scores = torch.tensor([1.0, 1.0, 0.0])
        chances = torch.tensor([0.9, 0.65, 0.0])  # q is 0.8 and 0.3, and half of their mean 0.275
        kept = keep_where_alike_agree(scores, torch.ones(3, dtype=torch.bool), chances, 0.5)
        assert kept.tolist() == [True, True, False]

    def test_where_most_oppose_what_is_a_little_better_does_not_stay_for_that(self) -> None:
        scores, chances = torch.ones(2), torch.tensor([0.2, 0.4])  # q is -0.6 and -0.2, half of the mean -0.2
        kept = keep_where_alike_agree(scores, torch.ones(2, dtype=torch.bool), chances, 0.5)
        assert kept.tolist() == [False, False]


@pytest.mark.parametrize("agrees", [[True] * 4, [False] * 4])
def test_refuses_rows_that_all_have_one_sign(agrees: list[bool]) -> None:
    with pytest.raises(ValueError, match="nothing to tell apart"):
        fit_probe(torch.zeros(4, 1, dtype=torch.float64), torch.tensor(agrees), 1.0)


def test_refuses_features_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        standardised(torch.tensor([[torch.nan], [1.0]]))
