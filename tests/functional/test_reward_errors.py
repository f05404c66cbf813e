from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Laplace

from ippo.functional import (
    Part,
    RewardErrors,
    alignments,
    estimate_reward_errors,
    prompt_priors,
    reward_posterior,
)


def drawn(
    e1: float, e0: float, right: Part = Part(1.0, 0.5), wrong: Part = Part(-0.5, 1.0), n: int = 4000, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Alignments of a verifier with these errors, who is rewarded, and whose reward is right."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        rewarded = torch.arange(n) % 2 == 0
        is_right = torch.rand(n) < torch.where(rewarded, 1 - e1, e0)
        values = torch.where(is_right, Laplace(*right).sample((n,)), Laplace(*wrong).sample((n,)))
    return values, rewarded, is_right == rewarded


class TestAlignments:
    def test_a_score_is_worth_what_it_would_be_at_an_advantage_of_one(self) -> None:
        alignment = torch.tensor([2.0, -1.0, 3.0, 0.5])
        rewarded = torch.tensor([True, False, True, True])
        scores = (rewarded.float() - 0.75) * alignment
        assert alignments(scores, rewarded).tolist() == alignment.tolist()

    @pytest.mark.parametrize("rewarded", [[True, True], [False, False]])
    def test_of_one_class_there_is_no_mean_to_differ_from(self, rewarded: list[bool]) -> None:
        with pytest.raises(ValueError, match="both, rewarded and unrewarded"):
            alignments(torch.ones(2), torch.tensor(rewarded))

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_refuses_what_is_not_finite(self, bad: float) -> None:
        with pytest.raises(ValueError, match="scores must be finite"):
            alignments(torch.tensor([1.0, bad]), torch.tensor([True, False]))


class TestEstimate:
    @pytest.mark.parametrize(("e1", "e0"), [(0.3, 0.1), (0.1, 0.3), (0.25, 0.25), (0.4, 0.0)])
    def test_finds_the_errors_and_the_parts_of_a_known_mixture(self, e1: float, e0: float) -> None:
        values, rewarded, _ = drawn(e1, e0)
        found = estimate_reward_errors(values, rewarded)
        assert found.rewarded == pytest.approx(e1, abs=0.06)
        assert found.unrewarded == pytest.approx(e0, abs=0.06)
        assert found.right == pytest.approx((1.0, 0.5), abs=0.12)
        assert found.wrong == pytest.approx((-0.5, 1.0), abs=0.15)

    def test_of_an_honest_verifier_it_finds_next_to_no_error(self) -> None:
        values, rewarded, _ = drawn(0.0, 0.0, right=Part(2.0, 0.5), wrong=Part(-2.0, 0.5))
        found = estimate_reward_errors(values, rewarded)
        assert max(found.rewarded, found.unrewarded) < 0.02

    def test_the_unit_changes_nothing(self) -> None:
        values, rewarded, _ = drawn(0.3, 0.1, n=400)
        one, other = (estimate_reward_errors(unit * values, rewarded) for unit in (1.0, 2.0**-20))
        assert one.rewarded == pytest.approx(other.rewarded)
        assert one.right.scale == pytest.approx(other.right.scale * 2**20)

    def test_the_order_changes_nothing(self) -> None:
        values, rewarded, _ = drawn(0.3, 0.1, n=400)
        turned = estimate_reward_errors(values.flip(0), rewarded.flip(0))
        assert turned.rewarded == pytest.approx(estimate_reward_errors(values, rewarded).rewarded)

    def test_what_has_no_gradient_says_nothing(self) -> None:
        values, rewarded, _ = drawn(0.3, 0.1, n=400)
        more = torch.cat([values, torch.zeros(300)]), torch.cat([rewarded, torch.ones(300, dtype=torch.bool)])
        assert estimate_reward_errors(*more) == estimate_reward_errors(values, rewarded)

    def test_equal_scores_do_not_make_a_part_shrink_to_a_point(self) -> None:
        found = estimate_reward_errors(torch.tensor([1.0] * 8 + [-1.0] * 8), torch.arange(16) < 8)
        assert found.right.scale == found.wrong.scale == pytest.approx(1e-3)

    def test_takes_two_of_each_class(self) -> None:
        with pytest.raises(ValueError, match="two rewarded and two unrewarded"):
            estimate_reward_errors(torch.tensor([1.0, 2.0, 0.0, -1.0]), torch.tensor([True, True, False, False]))


class TestPosterior:
    ERRORS = RewardErrors(0.25, 0.2, Part(1.0, 1.0), Part(-1.0, 1.0))

    @pytest.mark.parametrize(
        ("value", "rewarded", "expected"),
        [
            (0.0, True, 0.75),  # both parts are as likely: the rates alone
            (0.0, False, 0.8),
            (1.0, True, 0.75 / (0.75 + 0.25 * math.exp(-2))),
            (-1.0, True, 0.75 * math.exp(-2) / (0.75 * math.exp(-2) + 0.25)),
            (-1.0, False, 0.8 / (0.8 + 0.2 * math.exp(-2))),  # an unrewarded one that is unlike the gold solutions
            (9.0, True, 0.75 / (0.75 + 0.25 * math.exp(-2))),  # no more than at 1
        ],
    )
    def test_bayes_rule_by_hand(self, value: float, rewarded: bool, expected: float) -> None:
        found = reward_posterior(torch.tensor([value]), torch.tensor([rewarded]), self.ERRORS, doubt=0.0)
        assert found.item() == pytest.approx(expected)

    def test_of_another_prior_by_hand(self) -> None:
        prior = torch.tensor([0.5])
        found = reward_posterior(torch.tensor([1.0]), torch.tensor([True]), self.ERRORS, prior, doubt=0.0)
        assert found.item() == pytest.approx(1 / (1 + math.exp(-2)))

    def test_rises_with_the_score_where_both_parts_have_one_scale(self) -> None:
        values = torch.linspace(-3, 3, 61)
        found = reward_posterior(values, torch.ones(61, dtype=torch.bool), self.ERRORS, rising=False, doubt=0.0)
        assert found.diff().min() > -1e-12
        assert found[0] < 0.3 < 0.95 < found[-1]

    def test_both_ends_belong_to_the_wider_part_if_it_may_fall(self) -> None:
        errors = RewardErrors(0.25, 0.2, Part(0.2, 0.3), Part(-0.2, 1.5))
        ends, paid = torch.tensor([-4.0, 0.2, 4.0]), torch.ones(3, dtype=torch.bool)
        low, middle, high = reward_posterior(ends, paid, errors, rising=False, doubt=0.0)
        assert low < high < 0.1 < 0.9 < middle
        low, middle, high = reward_posterior(ends, paid, errors, doubt=0.0)
        assert low < 0.1 < 0.9 < middle == high

    @pytest.mark.parametrize("parts", [(Part(0.2, 0.3), Part(-0.2, 1.5)), (Part(0.2, 1.5), Part(-0.2, 0.3))], ids=str)
    @pytest.mark.parametrize("turned", [False, True])
    def test_never_falls_whatever_the_parts(self, parts: tuple[Part, Part], turned: bool) -> None:
        errors = RewardErrors(0.25, 0.2, *(parts[::-1] if turned else parts))
        found = reward_posterior(torch.linspace(-6, 6, 241), torch.ones(241, dtype=torch.bool), errors)
        assert found.diff().min() > -1e-12
        assert found[-1] > found[0]

    def test_doubt_bounds_what_a_score_can_say(self) -> None:
        """At 20 % the odds change by a factor of 4 at most: 3 / 1 becomes 12 / 1 or 3 / 4."""
        errors = RewardErrors(0.25, 0.2, Part(50.0, 1.0), Part(-50.0, 1.0))
        found = reward_posterior(torch.tensor([50.0, -50.0]), torch.tensor([True, True]), errors, doubt=0.2)
        assert found.tolist() == pytest.approx([12 / 13, 3 / 7])

    @pytest.mark.parametrize("doubt", [-0.1, 0.5])
    def test_refuses_doubt_out_of_range(self, doubt: float) -> None:
        with pytest.raises(ValueError, match="doubt must be from 0 to below 1/2"):
            reward_posterior(torch.zeros(1), torch.ones(1).bool(), self.ERRORS, doubt=doubt)

    def test_is_the_share_of_right_rewards_among_those_it_says_it_of(self) -> None:
        values, rewarded, right = drawn(0.3, 0.15)
        found = reward_posterior(values, rewarded, estimate_reward_errors(values, rewarded), rising=False, doubt=0.0)
        for low, high in ((0.0, 0.5), (0.5, 0.8), (0.8, 0.95)):
            here = (found >= low) & (found < high)
            assert right[here].float().mean() == pytest.approx(found[here].mean().item(), abs=0.07)

    def test_is_finite_where_a_density_is_nothing(self) -> None:
        found = reward_posterior(torch.tensor([1e30, -1e30]), torch.tensor([True, False]), self.ERRORS)
        assert found.isfinite().all()


class TestPromptPriors:
    ERRORS = RewardErrors(0.2, 0.2, Part(1.0, 1.0), Part(-1.0, 1.0))
    PAID, GROUPS = torch.tensor([True, True, True, False, False, False, False, True]), torch.tensor([7] * 4 + [3] * 4)

    def test_by_hand(self) -> None:
        """Half are paid, so p = q = 0.2; of prompt 7 three of four: m = (3 + 4 / 2) / 8 = 5/8 and pi = 17/24."""
        found = prompt_priors(self.PAID, self.GROUPS, self.ERRORS, strength=4.0)
        right = 17 / 24
        paid = right * 0.8 / (right * 0.8 + (1 - right) * 0.2)
        unpaid = right * 0.2 / (right * 0.2 + (1 - right) * 0.8)
        assert found[0].item() == pytest.approx(paid)
        assert found[3].item() == pytest.approx(unpaid)
        assert found[7].item() == pytest.approx(1 - unpaid)  # prompt 3 is the mirror image

    def test_a_strong_mean_of_all_leaves_the_rates(self) -> None:
        found = prompt_priors(self.PAID, self.GROUPS, self.ERRORS, strength=1e9)
        assert found[[0, 3]].tolist() == pytest.approx([0.8, 0.2])

    def test_a_verifier_that_tells_nothing_leaves_the_rates(self) -> None:
        errors = self.ERRORS._replace(rewarded=0.6, unrewarded=0.6)
        assert prompt_priors(self.PAID, self.GROUPS, errors, 4.0)[[0, 3]].tolist() == pytest.approx([0.4, 0.6])

    def test_stays_inside_where_a_prompt_is_paid_more_than_the_rates_allow(self) -> None:
        found = prompt_priors(torch.arange(64) < 32, torch.arange(64) // 32, self.ERRORS, strength=1.0)
        assert ((found > 0) & (found < 1)).all()

    def test_refuses_a_strength_of_nothing(self) -> None:
        with pytest.raises(ValueError, match="strength must be above 0, got 0"):
            prompt_priors(self.PAID, self.GROUPS, self.ERRORS, strength=0.0)
