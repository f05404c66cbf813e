"""The learning rate's factor, by hand and against torch's own schedules."""

from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import LinearLR

from ippo.functional import rate_factor


@pytest.mark.parametrize(
    ("warmup", "schedule", "factors"),
    [
        (0, "constant", [1.0, 1.0, 1.0, 1.0]),
        (3, "constant", [0.25, 0.5, 0.75, 1.0]),
        (0, "linear", [1.0, 0.775, 0.55, 0.325]),
        (1, "linear", [0.5, 0.775, 0.55, 0.325]),
    ],
)
def test_by_hand(warmup: int, schedule: str, factors: list[float]) -> None:
    found = [rate_factor(iteration, 4, warmup, schedule) for iteration in range(4)]  # type: ignore[arg-type]
    assert found == pytest.approx(factors)


def test_without_a_known_end_nothing_falls() -> None:
    assert [rate_factor(iteration, -1, 0, "linear") for iteration in (0, 5, 500)] == [1.0] * 3


def test_falls_as_torchs_linear_schedule_to_a_tenth() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=10)
    for iteration in range(10):
        assert rate_factor(iteration, 10, 0, "linear") == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
