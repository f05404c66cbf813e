"""Scores over steps that are taken, against the same steps on a copy of the module."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_modules import assert_same, halves, random_direction, squares, weight_of
from torch import Tensor, nn

from ippo.errors import UsageError
from ippo.influence import BufferDirection, ExactScorer, LookaheadScorer, ValidationDirection


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.ModuleList([nn.Linear(4, 4)])[0], nn.Tanh(), nn.Linear(4, 2))


def stepped(module: nn.Module, gold: Tensor, steps: int, rate: float, moves: str = "") -> nn.Module:
    """A copy of the module that Adam has trained on the gold rows."""
    moved = copy.deepcopy(module)
    optimizer = torch.optim.Adam([p for name, p in moved.named_parameters() if moves in name], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        squares(moved, gold).mean().backward()
        optimizer.step()
    return moved


ONE = {"weight": torch.ones(1, 1)}
BATCHES = [torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0]])]  # x ** 2 / 2 is 0.5, 2 and 4.5


class TestByHand:
    @pytest.mark.parametrize(("steps", "after"), [(1, 2.5), (2, 2.0), (4, 1.0)])
    def test_along_one_gradient_adam_goes_its_rate_a_step(self, steps: int, after: float) -> None:
        """(3 ** 2 - after ** 2) x ** 2 / 2"""
        scores = LookaheadScorer(steps, 0.5).score(weight_of(3.0), halves, BATCHES, ONE)
        assert scores.tolist() == pytest.approx([(9 - after**2) * half for half in (0.5, 2.0, 4.5)], rel=1e-5)

    def test_a_loss_that_rises_scores_below_zero(self) -> None:
        against = {"weight": -torch.ones(1, 1)}
        scores = LookaheadScorer(1, 1.0).score(weight_of(3.0), halves, BATCHES, against)
        assert scores.tolist() == pytest.approx([(9 - 16) * half for half in (0.5, 2.0, 4.5)], rel=1e-5)

    def test_no_episodes_no_scores(self) -> None:
        assert LookaheadScorer(1, 1.0).score(weight_of(3.0), halves, [], ONE).tolist() == []


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("subset", [None, "4"])
def test_is_what_the_same_steps_do_to_a_copy(steps: int, subset: Any) -> None:
    module, batch, gold = layers(), torch.randn(5, 3), torch.randn(4, 3)
    moved = stepped(module, gold, steps, 0.05, subset or "")
    direction = ValidationDirection([gold], squares)
    scores = LookaheadScorer(steps, 0.05, subset).score(module, squares, batch.split(2), direction)
    assert_same(scores, (squares(module, batch) - squares(moved, batch)).detach())


def test_small_steps_score_as_the_dot_product_with_where_they_lead() -> None:
    module, batch, gold = layers().double(), torch.randn(5, 3).double(), torch.randn(4, 3).double()
    moved = stepped(module, gold, 4, 1e-5)
    way = {name: p.detach() - moved.get_parameter(name).detach() for name, p in module.named_parameters()}
    expected = ExactScorer().score(module, squares, [batch], way)
    assert_same(
        LookaheadScorer(4, 1e-5).score(module, squares, [batch], ValidationDirection([gold], squares)), expected, 1e-3
    )


def test_over_long_steps_it_is_another_score() -> None:
    module, batch, gold = layers(), torch.randn(50, 3), torch.randn(4, 3)
    direction = ValidationDirection([gold], squares)
    far, near = (LookaheadScorer(4, rate).score(module, squares, [batch], direction) for rate in (0.5, 1e-3))
    assert torch.corrcoef(torch.stack([far, near]))[0, 1] < 0.99


class TestTokens:
    @staticmethod
    def tokens(module: nn.Module, batch: Tensor) -> Tensor:
        return module(batch).square()

    def test_values_and_what_they_lose(self) -> None:
        module, batch, gold = layers(), torch.randn(5, 3), torch.randn(4, 3)
        moved = stepped(module, gold, 2, 0.05)
        direction = ValidationDirection([gold], squares)
        values, jvps = LookaheadScorer(2, 0.05).derivatives(module, self.tokens, batch.split(2), direction)
        torch.testing.assert_close(values, self.tokens(module, batch).detach())
        assert_same(jvps, values - self.tokens(moved, batch).detach())

    def test_shorter_batches_are_padded(self) -> None:
        def tokens(module: nn.Module, batch: Tensor) -> Tensor:
            return module(batch) * torch.ones(1, len(batch))

        values, jvps = LookaheadScorer(1, 1.0).derivatives(weight_of(3.0), tokens, BATCHES, ONE)
        assert values.tolist() == [[3.0, 3.0], [6.0, 6.0], [9.0, 0.0]]
        torch.testing.assert_close(jvps, torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 0.0]]))

    def test_a_direction_of_the_buffer_is_that_of_its_rows(self) -> None:
        module, batch = layers(), torch.randn(5, 3)
        moved = copy.deepcopy(module)
        optimizer = torch.optim.Adam(moved.parameters(), lr=0.05)
        self.tokens(moved, batch).sum(1).mean().backward()
        optimizer.step()
        _, jvps = LookaheadScorer(1, 0.05).derivatives(module, self.tokens, batch.split(2), BufferDirection())
        assert_same(jvps, (self.tokens(module, batch) - self.tokens(moved, batch)).detach())

    def test_no_episodes(self) -> None:
        assert [len(found) for found in LookaheadScorer(1, 1.0).derivatives(weight_of(3.0), self.tokens, [], ONE)] == [
            0,
            0,
        ]


class TestRate:
    def test_is_the_highest_that_was_observed(self) -> None:
        module, scorer = weight_of(3.0), LookaheadScorer(1)
        for rate in (0.5, 1.0, 0.1):
            scorer.observe(module, rate)
        assert scorer.score(module, halves, BATCHES, ONE).tolist() == pytest.approx([2.5, 10.0, 22.5], rel=1e-5)

    def test_that_is_named_goes_before_it(self) -> None:
        module, scorer = weight_of(3.0), LookaheadScorer(1, 1.0)
        scorer.observe(module, 7.0)
        assert scorer.score(module, halves, BATCHES, ONE).tolist() == pytest.approx([2.5, 10.0, 22.5], rel=1e-5)

    def test_survives_a_restart(self) -> None:
        module, scorer, resumed = weight_of(3.0), LookaheadScorer(1), LookaheadScorer(1)
        scorer.observe(module, 1.0)
        resumed.load_state_dict(scorer.state_dict())
        resumed.observe(module, 0.1)
        assert torch.equal(resumed.score(module, halves, BATCHES, ONE), scorer.score(module, halves, BATCHES, ONE))

    def test_that_nobody_knows_is_refused(self) -> None:
        with pytest.raises(UsageError, match="learning_rate = None: name one"):
            LookaheadScorer().score(weight_of(3.0), halves, BATCHES, ONE)


class TestLeavesTheModuleAsItWas:
    @staticmethod
    def look(module: nn.Module) -> list[Any]:
        return [(id(p), p.data_ptr(), p._version, p.requires_grad, p.grad) for p in module.parameters()]

    def test_down_to_the_storage_and_the_gradients_that_wait_in_it(self) -> None:
        module = layers()
        module[4].bias.requires_grad_(False)
        squares(module, torch.randn(2, 3)).mean().backward()
        before, values = self.look(module), [p.detach().clone() for p in module.parameters()]
        direction = ValidationDirection([torch.randn(4, 3)], squares)
        LookaheadScorer(3, 0.1).score(module, squares, [torch.randn(5, 3)], direction)
        for mine, earlier in zip(self.look(module), before, strict=True):
            assert mine[:4] == earlier[:4]
            assert mine[4] is earlier[4]
        assert all(torch.equal(p, value) for p, value in zip(module.parameters(), values, strict=True))

    def test_after_an_error(self) -> None:
        module = layers()
        before = self.look(module)

        def losses(module: nn.Module, batch: Tensor) -> Tensor:
            if module[0].weight.data_ptr() != before[0][1]:
                raise KeyError("broken")
            return squares(module, batch)

        with pytest.raises(KeyError, match="broken"):
            LookaheadScorer(1, 0.1).score(module, losses, [torch.randn(5, 3)], random_direction(module))
        assert self.look(module) == before


class TestRefusals:
    def test_an_iterator_cannot_be_read_twice(self) -> None:
        with pytest.raises(UsageError, match="batches = 'list_iterator': they are read before and after the steps"):
            LookaheadScorer(1, 1.0).score(weight_of(3.0), halves, iter(BATCHES), ONE)

    def test_leaving_one_out(self) -> None:
        with pytest.raises(UsageError, match="leave_one_out"):
            LookaheadScorer(1, 1.0).score(weight_of(3.0), halves, BATCHES, BufferDirection(leave_one_out=True))

    def test_a_loss_that_is_not_finite(self) -> None:
        def losses(module: nn.Module, batch: Tensor) -> Tensor:
            return halves(module, batch) / 0

        with pytest.raises(UsageError, match="NaN or Inf in 3 of 3 episodes"):
            LookaheadScorer(1, 1.0).score(weight_of(3.0), losses, [torch.zeros(3, 1)], ONE)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"steps": 0}, "steps = 0: use a whole number of at least 1"),
            ({"learning_rate": 0.0}, "learning_rate = 0.0: use a number above 0"),
            ({"learning_rate": float("nan")}, "learning_rate = nan: use a number above 0"),
        ],
    )
    def test_options_out_of_range(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            LookaheadScorer(**options)


def test_the_loss_that_is_told_is_that_before_the_steps() -> None:
    module, gold = weight_of(3.0), torch.tensor([[1.0], [2.0]])
    direction = ValidationDirection([gold], halves)
    LookaheadScorer(3, 0.5).score(module, halves, [gold], direction)
    assert direction.mean_loss == pytest.approx((9 + 36) / 4)
