from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from ippo.functional import effective_sample_size, largest_temper, proportional_weights


class TestEffectiveSampleSize:
    @pytest.mark.parametrize(
        ("weights", "expected"),
        [
            ([2.0, 2.0, 2.0], 1.0),
            ([5.0, 0.0, 0.0, 0.0], 1 / 4),
            ([1.0, 2.0, 3.0], 36 / (3 * 14)),
            ([0.0, 0.0], 0.0),
            ([], 0.0),
        ],
    )
    def test_hand_worked(self, weights: list[float], expected: float) -> None:
        assert effective_sample_size(torch.tensor(weights)).item() == pytest.approx(expected)

    @pytest.mark.parametrize("unit", [1e-30, 1e30])
    def test_unit_does_not_matter(self, unit: float) -> None:
        weights = unit * torch.tensor([1.0, 2.0, 3.0])  # their squares are outside of float32
        assert effective_sample_size(weights).item() == pytest.approx(36 / 42)

    def test_names_the_argument_of_the_wrong_shape(self) -> None:
        with pytest.raises(ValueError, match=r"weights must have shape \[n\], got \[2, 2\]"):
            effective_sample_size(torch.ones(2, 2))


class TestProportionalWeights:
    @pytest.mark.parametrize(
        ("temper", "expected"),
        [
            (1.0, [1 / 7, 4 / 7, 16 / 7]),  # 1, 4, 16 over their mean 7
            (0.5, [3 / 7, 6 / 7, 12 / 7]),  # 1, 2, 4 over their mean 7/3
            (0.0, [1.0, 1.0, 1.0]),
        ],
    )
    def test_hand_worked(self, temper: float, expected: list[float]) -> None:
        weights = proportional_weights(torch.tensor([1.0, 4.0, 16.0]), temper)
        torch.testing.assert_close(weights, torch.tensor(expected))

    @pytest.mark.parametrize("unit", [1e-37, 1e37])
    @pytest.mark.parametrize("temper", [1.0, 3.0])
    def test_unit_does_not_matter(self, unit: float, temper: float) -> None:
        scores = torch.tensor([1.0, 2.0, 3.0, 30.0])  # cubes and the sum of large ones are outside of float32
        weights = proportional_weights(unit * scores, temper)
        torch.testing.assert_close(weights, proportional_weights(scores, temper))
        assert weights.mean().item() == pytest.approx(1.0)

    @pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
    def test_refuses_scores_that_cannot_be_weights(self, bad: float) -> None:
        with pytest.raises(ValueError, match=f"scores must be positive and finite, got {bad}"):
            proportional_weights(torch.tensor([1.0, bad]))

    def test_refuses_a_negative_temper(self) -> None:
        with pytest.raises(ValueError, match=r"temper must not be negative, got -0\.5"):
            proportional_weights(torch.ones(2), temper=-0.5)

    def test_no_scores(self) -> None:
        assert proportional_weights(torch.tensor([])).tolist() == []


class TestLargestTemper:
    def test_hand_worked(self) -> None:
        # scores 1 and 16: at tau = 1/2 weights 1 and 4, so (1 + 4) ** 2 / (2 * 17)
        assert largest_temper(torch.tensor([1.0, 16.0]), 25 / 34) == pytest.approx(0.5, abs=1e-6)

    def test_paper_weights_where_they_suffice(self) -> None:
        assert largest_temper(torch.tensor([1.0, 1.5, 2.0]), min_effective=0.5) == 1.0

    def test_uniform_weights_where_nothing_else_suffices(self) -> None:
        assert largest_temper(torch.tensor([1.0, 2.0]), min_effective=1.0) == pytest.approx(0.0, abs=1e-6)

    def test_floor_is_met_and_reached(self) -> None:
        scores = torch.rand(200, generator=torch.Generator().manual_seed(0)).double() ** 6 + 1e-9
        temper = largest_temper(scores, min_effective=0.4)
        assert effective_sample_size(proportional_weights(scores)) < 0.4
        assert effective_sample_size(proportional_weights(scores, temper)) >= 0.4
        assert effective_sample_size(proportional_weights(scores, temper + 1e-6)) < 0.4

    def test_effective_sample_size_never_grows_with_temper(self) -> None:
        scores = torch.randn(50, generator=torch.Generator().manual_seed(0)).mul(3).exp()
        sizes = [effective_sample_size(proportional_weights(scores, k / 20)).item() for k in range(21)]
        assert all(later < earlier for earlier, later in pairwise(sizes))

    def test_no_scores(self) -> None:
        assert largest_temper(torch.tensor([]), min_effective=0.5) == 1.0

    def test_refuses_a_floor_that_is_no_share(self) -> None:
        with pytest.raises(ValueError, match=r"min_effective must be a share in \[0, 1\], got 2"):
            largest_temper(torch.ones(2), min_effective=2)
