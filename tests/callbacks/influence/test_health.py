"""What a filter warns of by itself."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from ippo.callbacks.influence.health import WHOLE, WINDOW, Health


def told(health: Health, scores: Tensor, losses: list[float], survival: float = 1.0) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for loss in losses:
            health.take_in(scores, survival, loss)
    return [str(one.message) for one in caught]


TOGETHER = torch.linspace(1, 2, 32)
APART = torch.cat([TOGETHER[:8] / 10, TOGETHER[8:] + 5])


def test_a_gold_loss_that_does_not_fall_is_told_once() -> None:
    (message,) = told(Health("filter", True), TOGETHER, [1.1, 1.2] * WINDOW)
    assert message.startswith(f"filter: the gold loss has not fallen in {WINDOW} filtered batches: 1.15 at first")
    assert "dry_run=True" in message


def test_one_that_has_fallen_may_rest_and_one_that_comes_back_is_told() -> None:
    fallen = [1.0] * 50 + [0.5] * (2 * WINDOW - 50)
    health = Health("filter", True)
    assert told(health, TOGETHER, fallen) == []
    assert len(told(health, TOGETHER, [1.0] * 2 * WINDOW)) == 1


def test_two_groups_that_all_stay_are_told_once_with_the_rule_to_use() -> None:
    falling = [1 / (1 + n) for n in range(3 * WHOLE)]
    (message,) = told(Health("filter", True), APART, falling)
    assert "two groups far apart" in message
    assert "keep=LikeGold()" in message


@pytest.mark.parametrize(
    ("by_sign", "scores", "survival", "batches"),
    [(True, TOGETHER, 1.0, 60), (True, APART, 0.9, 60), (False, APART, 1.0, 60), (True, APART, 1.0, WHOLE - 1)],
    ids=["one group", "some go", "the rule compares with gold rows", "too few batches"],
)
def test_nothing_is_said_of(by_sign: bool, scores: Tensor, survival: float, batches: int) -> None:
    assert told(Health("filter", by_sign), scores, [1 / (1 + n) for n in range(batches)], survival) == []
