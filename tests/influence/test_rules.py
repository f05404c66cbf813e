"""Keep rules, weight rules, and the selection that they come to together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ippo.errors import UsageError
from ippo.functional import effective_sample_size
from ippo.influence import (
    AboveGap,
    KeepRule,
    MaxVariance,
    PositiveScore,
    Proportional,
    RandomMatched,
    RightAndRandom,
    RightOrPositive,
    Selection,
    TopFraction,
    Uniform,
    WorstNegatives,
    select_episodes,
)

NAN, INF = float("nan"), float("inf")


def keep(rule: KeepRule, scores: Tensor, rewards: Tensor | None = None) -> list[bool]:
    rewards = torch.zeros_like(scores) if rewards is None else rewards
    return rule(scores, rewards, torch.arange(len(scores))).tolist()


def selection(scores: list[float], rule: KeepRule = PositiveScore(), weight: Any = Proportional()) -> Selection:
    count = len(scores)
    return select_episodes(torch.tensor(scores), torch.zeros(count), torch.arange(count), rule, weight)


def test_positive_score_keeps_nothing_that_does_not_help() -> None:
    scores = torch.tensor([1.0, 1e-30, 0.0, -0.0, -1e-30, -1.0])
    assert keep(PositiveScore(), scores) == [True, True, False, False, False, False]


class TestKeepRules:
    """The decisions themselves: tests/functional/test_selection.py."""

    SCORES = torch.tensor([0.3, -0.4, 0.0, -0.1, -0.2, -0.3])
    REWARDS = torch.tensor([1.0, 0.0, 0.2, 0.7, 1.0, 0.0])
    GROUPS = torch.tensor([0, 0, 0, 1, 1, 1])

    @pytest.mark.parametrize(
        ("rule", "kept", "reason"),
        [
            (PositiveScore(), [0], "score <= 0"),
            (AboveGap(), [0, 1, 2, 3, 4, 5], "in the lower of two groups of scores"),
            (PositiveScore(zero=True), [0, 2], "score < 0"),
            (PositiveScore(min_fraction=0.5), [0, 2, 3], "score <= 0"),
            (PositiveScore(0.25, zero=True), [0, 2], "score < 0"),
            (WorstNegatives(), [0, 2], "among the worst negative scores"),
            (WorstNegatives(share=0.5), [0, 2, 3, 4], "among the worst negative scores"),
            (TopFraction(), [0, 2, 3], "not among the highest scores"),
            (TopFraction(fraction=1.0), [0, 1, 2, 3, 4, 5], "not among the highest scores"),
            (MaxVariance(samples=2), [0, 1, 4, 5], "not among the rewards of the largest variance"),
            (RightOrPositive(), [0, 3, 4], "wrong, and score <= 0"),
            (RightOrPositive(threshold=0.7), [0, 4], "wrong, and score <= 0"),
        ],
    )
    def test_kept_and_reason_by_hand(self, rule: KeepRule, kept: list[int], reason: str) -> None:
        found = select_episodes(self.SCORES, self.REWARDS, self.GROUPS, rule, Uniform())
        assert found.kept.nonzero().flatten().tolist() == kept
        assert found.reasons == ["" if index in kept else reason for index in range(6)]

    def test_only_the_rule_that_keeps_zero_says_another_reason(self) -> None:
        PositiveScore(zero=True)
        assert PositiveScore().reason == PositiveScore.reason == "score <= 0"

    @pytest.mark.parametrize(
        "rule",
        [
            PositiveScore(min_fraction=0.25),
            WorstNegatives(0.5),
            TopFraction(),
            MaxVariance(2),
            RightOrPositive(),
            RandomMatched(TopFraction()),
        ],
    )
    def test_an_empty_buffer_stays_empty(self, rule: KeepRule) -> None:
        found = select_episodes(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.long), rule, Proportional())
        assert found.kept.dtype == torch.bool
        assert found.kept.tolist() == found.weights.tolist() == found.reasons == []

    def test_random_control_keeps_as_many_as_any_rule(self) -> None:
        kept = RandomMatched(MaxVariance(samples=2))(self.SCORES, self.REWARDS, self.GROUPS)
        assert kept.sum() == 4

    @pytest.mark.parametrize(
        ("rule", "options", "message"),
        [
            (PositiveScore, {"min_fraction": 1.5}, r"min_fraction = 1\.5: use a share between 0"),
            (PositiveScore, {"min_fraction": NAN}, "min_fraction = nan"),
            (WorstNegatives, {"share": -0.1}, r"share = -0\.1: use a share between 0"),
            (WorstNegatives, {"share": 30}, "share = 30"),
            (TopFraction, {"fraction": 0.0}, r"fraction = 0\.0: use a share above 0"),
            (TopFraction, {"fraction": 1.1}, r"fraction = 1\.1"),
            (MaxVariance, {"samples": 1}, "samples = 1: use at least 2"),
            (RightOrPositive, {"threshold": NAN}, "threshold = nan: use a reward between"),
        ],
    )
    def test_refuses_options_out_of_range(self, rule: Any, options: dict[str, float], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            rule(**options)


class TestRandomMatched:
    SCORES = torch.tensor([0.3, 0.2, 0.1, -0.1, -0.2, -0.3, -0.4, -0.5])
    REWARDS = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0])

    def test_keeps_as_many_as_the_rule_but_others(self) -> None:
        draws = [keep(RandomMatched(), self.SCORES) for _ in range(200)]
        assert {sum(draw) for draw in draws} == {3}
        shares = torch.tensor(draws).float().mean(0)
        assert ((shares - 3 / 8).abs() < 4 * (3 / 8 * 5 / 8 / 200) ** 0.5).all()  # scores do not matter

    def test_matches_the_number_within_each_reward(self) -> None:
        for _ in range(20):
            kept = torch.tensor(keep(RandomMatched(within_rewards=True), self.SCORES, self.REWARDS))
            assert kept[self.REWARDS == 1].sum() == 2
            assert kept[self.REWARDS == 0].sum() == 1


class TestRightAndRandom:
    SCORES, REWARDS = TestRandomMatched.SCORES, TestRandomMatched.REWARDS

    def test_keeps_every_right_answer_and_random_wrong_ones_up_to_the_number(self) -> None:
        rule = RightAndRandom(TopFraction(0.75))  # 6 of 8, of which 4 are right
        draws = torch.tensor([keep(rule, self.SCORES, self.REWARDS) for _ in range(200)]).float()
        assert set(draws.sum(1).tolist()) == {6.0}
        assert (draws[:, self.REWARDS == 1] == 1).all()
        shares = draws[:, self.REWARDS == 0].mean(0)
        assert ((shares - 1 / 2).abs() < 4 * (1 / 4 / 200) ** 0.5).all()  # scores do not matter

    def test_never_drops_a_right_answer_to_match_the_number(self) -> None:
        kept = torch.tensor(keep(RightAndRandom(TopFraction(0.125)), self.SCORES, self.REWARDS))
        assert kept.equal(self.REWARDS == 1)


class TestProportional:
    @pytest.mark.parametrize(
        ("temper", "expected"), [(1.0, [3 / 7, 6 / 7, 12 / 7]), (0.0, [1.0, 1.0, 1.0]), (0.5, None)]
    )
    def test_weights_are_powers_of_the_score_over_their_mean(self, temper: float, expected: list[float] | None) -> None:
        scores = torch.tensor([1.0, 2.0, 4.0])
        powers = scores**temper
        weights = Proportional(temper)(scores)
        torch.testing.assert_close(weights, powers / powers.mean() if expected is None else torch.tensor(expected))

    @pytest.mark.parametrize("floor", [0.2, 0.5, 0.9, 1.0])
    def test_floor_of_the_effective_sample_size_holds(self, floor: float) -> None:
        scores = torch.rand(100) ** 12 + 1e-12
        assert effective_sample_size(Proportional()(scores)) < 0.2
        weights = Proportional(min_effective=floor)(scores)
        assert effective_sample_size(weights) >= floor - 1e-5
        assert weights.mean() == pytest.approx(1.0, abs=1e-5)
        assert (weights[scores.argsort()].diff() >= 0).all()

    def test_floor_tempers_no_more_than_needed(self) -> None:
        scores = torch.tensor([1.0, 1.5, 2.0])
        torch.testing.assert_close(Proportional(min_effective=0.5)(scores), Proportional()(scores))
        torch.testing.assert_close(Proportional(0.3, min_effective=0.5)(scores), Proportional(0.3)(scores))

    def test_scores_that_another_rule_kept_below_zero_weigh_nothing(self) -> None:
        weights = Proportional()(torch.tensor([2.0, -1.0, 0.0, 2.0]))
        torch.testing.assert_close(weights, torch.tensor([2.0, 0.0, 0.0, 2.0]))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"temper": -0.1}, r"temper = -0\.1: use a number between 0"),
            ({"temper": 1.1}, r"temper = 1\.1"),
            ({"min_effective": 2}, "min_effective = 2: use a share between 0 and 1, or null"),
        ],
    )
    def test_refuses_options_out_of_range(self, options: dict[str, float], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            Proportional(**options)


def test_uniform_weighs_all_alike() -> None:
    assert Uniform()(torch.tensor([0.1, 100.0])).tolist() == [1.0, 1.0]


class TestJudge:
    def test_survivors_weights_and_reasons_by_hand(self) -> None:
        found = selection([3.0, -1.0, 1.0, 0.0])
        assert found.kept.tolist() == [True, False, True, False]
        assert found.weights.tolist() == [1.5, 0.0, 0.5, 0.0]
        assert found.reasons == ["", "score <= 0", "", "score <= 0"]
        assert found.survival == 0.5
        assert found.effective_sample_size == pytest.approx(2.0**2 / (4 * 2.5))

    def test_a_score_that_is_not_finite_goes_and_moves_no_weight(self) -> None:
        found = selection([1.0, NAN, 3.0, INF, -INF])
        assert found.weights.tolist() == [0.5, 0.0, 1.5, 0.0, 0.0]
        assert found.reasons == ["", "score is not finite", "", "score is not finite", "score is not finite"]
        assert found.scores.isnan().tolist() == [False, True, False, False, False]  # as they were given

    def test_the_rule_sees_finite_scores_with_their_own_rewards_and_groups(self) -> None:
        class Look(KeepRule):
            reason = "seen"

            def __call__(self, scores: Tensor, rewards: Tensor, groups: Tensor) -> Tensor:
                self.seen = [each.tolist() for each in (scores, rewards, groups)]
                return rewards > 5

        rule = Look()
        scores = torch.tensor([1.0, NAN, 2.0])
        found = select_episodes(scores, torch.tensor([5.0, 6.0, 7.0]), torch.tensor([0, 0, 1]), rule, Uniform())
        assert rule.seen == [[1.0, 2.0], [5.0, 7.0], [0, 1]]
        assert found.reasons == ["seen", "score is not finite", ""]
        assert found.weights.tolist() == [0.0, 0.0, 1.0]

    @pytest.mark.parametrize("scores", [[-1.0, -2.0], [NAN, NAN], []], ids=["negative", "NaN", "no episodes"])
    @pytest.mark.parametrize("weight", [Proportional(), Proportional(min_effective=0.5), Uniform()])
    def test_no_survivors(self, scores: list[float], weight: Any) -> None:
        found = selection(scores, weight=weight)
        assert found.survival == 0.0
        assert found.effective_sample_size == 0.0
        assert found.weights.tolist() == [0.0] * len(scores)
        assert all(found.reasons)

    def test_part_is_some_of_the_rows(self) -> None:
        part = selection([3.0, -1.0, 1.0]).part(slice(1, 3))
        assert part.scores.tolist() == [-1.0, 1.0]
        assert part.kept.tolist() == [False, True]
        assert part.weights.tolist() == [0.0, 0.5]
        assert part.reasons == ["score <= 0", ""]
