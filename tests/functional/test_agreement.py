from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from ippo.functional import opposing_share, rank_correlation, survival_by_reward

NONE, ALL = torch.tensor([False, False]), torch.tensor([True, True])


class TestOpposingShare:
    def test_counts_rewarded_episodes_alone(self) -> None:
        scores, rewarded = torch.tensor([-1.0, -2.0, 3.0, 4.0, -5.0]), torch.tensor([1, 0, 1, 1, 0])
        assert opposing_share(scores, rewarded) == pytest.approx(1 / 3)

    def test_a_score_of_zero_is_on_neither_side(self) -> None:
        assert opposing_share(torch.tensor([-1.0, 0.0, 0.0, 1.0]), torch.ones(4)) == 0.5

    @pytest.mark.parametrize("rewarded", [NONE, ALL], ids=["none rewarded", "no gradient"])
    def test_of_nothing_is_not_a_number(self, rewarded: torch.Tensor) -> None:
        assert math.isnan(opposing_share(torch.zeros(2), rewarded))


class TestRankCorrelation:
    def test_is_spearmans_with_ties(self) -> None:
        generator = torch.Generator().manual_seed(0)
        rewards = torch.randint(3, (50,), generator=generator).float()  # many ties
        scores = (rewards + torch.randn(50, generator=generator)).round(decimals=1)
        expected = stats.spearmanr(rewards.numpy(), scores.numpy()).statistic
        assert rank_correlation(rewards, scores) == pytest.approx(expected, abs=1e-6)

    def test_by_hand(self) -> None:
        # ranks of the rewards 1.5 1.5 3.5 3.5 and of the scores 2 1 3 4, less 2.5: 4 / sqrt(4 * 5)
        found = rank_correlation(torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([0.2, 0.1, 0.3, 9.0]))
        assert found == pytest.approx(4 / 20**0.5)

    def test_what_differs_between_prompts_plays_no_part(self) -> None:
        rewards, groups = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0, 0.0]), torch.tensor([7, 7, 2, 2, 5, 5])
        scores = torch.tensor([1.0, 2.0, 200.0, 100.0, -5.0, -9.0])  # within 7 and 2 they agree; nothing is said in 5
        # ranks less their mean: rewards -+ 1/2 in two groups and 0 in one, scores -+ 1/2 in all three
        assert rank_correlation(rewards, scores, groups) == pytest.approx(1.0 / (1.0 * 1.5) ** 0.5)
        assert rank_correlation(rewards, scores + 1000 * groups, groups) == rank_correlation(rewards, scores, groups)
        assert rank_correlation(rewards, -scores, groups) == -rank_correlation(rewards, scores, groups)

    def test_of_rewards_that_never_differ_within_a_prompt_is_not_a_number(self) -> None:
        rewards, groups = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1])
        assert math.isnan(rank_correlation(rewards, torch.randn(4), groups))
        assert math.isnan(rank_correlation(torch.ones(4), torch.randn(4)))


class TestSurvivalByReward:
    def test_by_hand(self) -> None:
        kept, rewarded = torch.tensor([1, 0, 0, 1, 1]).bool(), torch.tensor([1, 1, 1, 0, 0]).bool()
        among_rewarded, among_others = survival_by_reward(kept, rewarded)
        assert (float(among_rewarded), float(among_others)) == (pytest.approx(1 / 3), 1.0)

    def test_of_nobody_is_not_a_number(self) -> None:
        assert [math.isnan(share) for share in survival_by_reward(ALL, ALL)] == [False, True]


@pytest.mark.parametrize("function", [opposing_share, rank_correlation, survival_by_reward])
def test_refuses_columns_of_other_lengths(function: object) -> None:
    with pytest.raises(ValueError, match=r"must have shape \[n=3\], got \[2\]"):
        function(torch.zeros(3), torch.zeros(2))  # type: ignore[operator]
