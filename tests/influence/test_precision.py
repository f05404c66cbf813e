"""Scores where something is computed in half precision, against float32, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_modules import assert_same, plain_scores, random_direction, squares
from torch import Tensor, nn

from ippo.errors import UsageError
from ippo.influence import ExactScorer, LookaheadScorer, ValidationDirection
from ippo.influence.parameters import scored


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


class CastInside(nn.Module):
    """Its parameters are float32, what it computes is not."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.net(x).float()


@pytest.mark.parametrize("backend", ["auto", "ghost", "jvp", "loop", "fd"])
def test_autocast_around_scoring_changes_nothing(backend: Any) -> None:
    module, batch = net(), torch.randn(5, 6)
    direction = random_direction(module)
    with torch.autocast("cpu", torch.bfloat16):
        scores = ExactScorer(backend).score(module, squares, [batch], direction)
    assert scores.dtype == torch.float32
    assert_same(scores, plain_scores(module, batch, direction), 1e-3 if backend == "fd" else 1e-5)


def test_a_direction_is_the_same_computed_apart_or_with_the_scores() -> None:
    """Under autocast, too: what a filter holds over several batches is what it would compute anew."""
    module, gold, batch = net(), torch.randn(5, 6), torch.randn(5, 6)
    direction = ValidationDirection([gold], squares)
    with torch.autocast("cpu", torch.bfloat16):
        with scored(module):
            held = direction.compute(module)
        assert torch.equal(
            ExactScorer("loop").score(module, squares, [batch], held),
            ExactScorer("loop").score(module, squares, [batch], direction),
        )


def test_lookahead_under_autocast_is_what_it_is_without() -> None:
    module, gold, batch = net(), torch.randn(5, 6), torch.randn(5, 6)
    scorer, direction = LookaheadScorer(learning_rate=1e-5), ValidationDirection([gold], squares)
    expected = scorer.score(module, squares, [batch], direction)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(scorer.score(module, squares, [batch], direction), expected)


@pytest.mark.parametrize("backend", ["auto", "ghost", "jvp"])
def test_a_module_that_casts_inside_is_scored_up_to_rounding(backend: Any) -> None:
    module, batch = CastInside(), torch.randn(16, 6)
    direction = random_direction(module)
    scorer = ExactScorer(backend)
    scores = scorer.score(module, squares, [batch], direction)
    exact = plain_scores(module.net, batch, {name[4:]: tensor for name, tensor in direction.items()})
    assert_same(scores, exact, 0.05)
    assert not scorer.choice.startswith("loop")


@pytest.mark.parametrize("scorer", [ExactScorer("fd"), LookaheadScorer(learning_rate=1e-3)], ids=["fd", "lookahead"])
@pytest.mark.parametrize("make", [CastInside, lambda: net().bfloat16()], ids=["cast inside", "half parameters"])
def test_differences_of_rounded_numbers_are_refused(make: Any, scorer: Any) -> None:
    module, batch = make(), torch.randn(5, 6).to(next(make().parameters()).dtype)
    with pytest.raises(UsageError, match=r"it takes differences, which torch.bfloat16 rounds away: compute in float32"):
        scorer.score(module, squares, [batch], random_direction(module))
