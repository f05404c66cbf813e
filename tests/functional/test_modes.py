from __future__ import annotations

import statistics

import pytest
import torch

from ippo.functional import two_means


def test_of_all_cuts_the_one_that_leaves_the_least_variance() -> None:
    values = torch.tensor([0.0, 1.0, 2.0, 8.0, 8.5, 9.0, 9.5, 10.0])
    cut, distance = two_means(values[torch.randperm(8)])
    low, high = values[:3].double(), values[3:].double()
    spread = ((low.var(correction=0) + high.var(correction=0)) / 2).sqrt()
    assert cut == 5.0  # midway between 2 and 8
    assert distance == pytest.approx(float((high.mean() - low.mean()) / spread))


def test_no_outlier_is_a_group() -> None:
    values = torch.cat([torch.linspace(0, 1, 19), torch.tensor([1000.0])])
    assert two_means(values, least=0.05)[0] > 2
    assert two_means(values)[0] < 1


def test_one_group_is_never_far_from_itself() -> None:
    draw = torch.Generator().manual_seed(0)
    normal = torch.randn(100_000, generator=draw)
    assert two_means(normal)[1] == pytest.approx(2.65, abs=0.02)  # 2 * 0.798 / 0.603
    assert two_means(torch.linspace(0, 1, 100_000))[1] == pytest.approx(12**0.5, abs=0.01)
    for shape in (torch.Tensor.exp, lambda x: x, lambda x: x**3):  # also of a batch that is small
        batches = shape(torch.randn(50, 32, generator=draw))
        assert statistics.median(two_means(batch)[1] for batch in batches) < 4


@pytest.mark.parametrize("values", [[], [1.0]], ids=str)
def test_too_few_for_two_groups(values: list[float]) -> None:
    assert all(number != number for number in two_means(torch.tensor(values)))
