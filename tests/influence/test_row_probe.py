from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ippo.influence import row_probe
from ippo.influence.row_probe import RowProbe


def gradients(losses: Tensor, hidden: Tensor, probe: RowProbe) -> tuple[Tensor, Tensor]:
    (first,) = torch.autograd.grad(losses.sum(), hidden, retain_graph=True)
    (second,) = torch.autograd.grad(losses, hidden, probe.factors, retain_graph=True)
    return first, second


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("n", [2, 5, 70])
def test_rows_that_are_apart_come_back_to_the_last_bit(dtype: torch.dtype, n: int) -> None:
    hidden = torch.randn(n, 7, 16, dtype=dtype, requires_grad=True)
    layers = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.LayerNorm(24), nn.Linear(24, 1)).to(dtype)
    losses = layers(hidden).softmax(1).square().sum((1, 2))
    probe = RowProbe(losses)
    first, second = gradients(losses, hidden, probe)
    assert torch.equal(second, first * probe.factors.view(-1, 1, 1).to(dtype))
    assert torch.equal(probe.sketch(second), probe.sketch(first) * probe.factors.float()[:, None])
    assert probe.agrees(second, probe.sketch(first))


@pytest.mark.parametrize("share", [1e-4, 1.0])
def test_a_row_that_another_loss_reads_is_found_whichever_numbers_a_probe_draws(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_probe, "_SEEDS", torch.Generator().manual_seed(0))
    torch.manual_seed(0)  # a ten-thousandth of rows that happen to be small is within rounding
    hidden = torch.randn(6, 4, 16, requires_grad=True)
    alone = hidden.square().sum((1, 2))
    losses = alone + share * alone.roll(1) * torch.tensor([0.0, 0, 0, 1, 0, 0])
    for _ in range(500):
        probe = RowProbe(losses)
        first, second = gradients(losses, hidden, probe)
        assert not probe.agrees(second, probe.sketch(first))
        first, second = gradients(alone, hidden, probe)
        assert probe.agrees(second, probe.sketch(first))


def test_two_rows_that_change_places_are_found() -> None:
    hidden = torch.randn(6, 2, 3, requires_grad=True)
    losses = hidden[[0, 1, 3, 2, 4, 5]].pow(3).sum((1, 2))
    probe = RowProbe(losses)
    first, second = gradients(losses, hidden, probe)
    assert not probe.agrees(second, probe.sketch(first))


def test_factors_are_powers_of_two_which_differ_as_long_as_they_can() -> None:
    factors = RowProbe(torch.zeros(62)).factors
    assert len(set(factors.tolist())) == 62
    assert (factors.abs().log2() == factors.abs().log2().round()).all()


def test_the_trainings_own_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    RowProbe(torch.zeros(5)).sketch(torch.randn(5, 3, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), before)
