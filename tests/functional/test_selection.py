from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ippo.functional import (
    keep_above_gap,
    keep_but_worst_negatives,
    keep_like_gold,
    keep_max_variance,
    keep_positive,
    keep_right_or_positive,
    keep_top,
)

NAN, INF = float("nan"), float("inf")
SCORES = st.lists(st.integers(-3, 3), max_size=12)  # few values, so ties are common
PERCENT = st.integers(0, 100)


def places(kept: Tensor) -> list[int]:
    assert kept.dtype == torch.bool
    return kept.nonzero().flatten().tolist()


def ranked(scores: list[int]) -> list[int]:
    """Places from the highest score to the lowest; of equal ones the first."""
    return sorted(range(len(scores)), key=lambda place: (-scores[place], place))


class TestKeepPositive:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, [1, 5]),
            ({"zero": True}, [1, 2, 3, 5]),
            ({"min_fraction": 0.25}, [1, 5]),  # 1.5 of 6 are 2
            ({"min_fraction": 0.5}, [1, 2, 5]),  # the first of the two zeros fills up
            ({"min_fraction": 0.6}, [1, 2, 3, 5]),  # 3.6 of 6 are 4
            ({"min_fraction": 0.75}, [1, 2, 3, 4, 5]),
            ({"min_fraction": 0.25, "zero": True}, [1, 2, 3, 5]),
            ({"min_fraction": 1.0}, [0, 1, 2, 3, 4, 5]),
        ],
    )
    def test_hand_worked(self, options: Any, expected: list[int]) -> None:
        scores = torch.tensor([-0.5, 1e-30, 0.0, -0.0, -0.2, 2.0])
        assert places(keep_positive(scores, **options)) == expected

    def test_a_share_is_taken_as_it_is_written(self) -> None:
        assert 0.07 * 100 > 7
        assert len(places(keep_positive(-torch.ones(100), min_fraction=0.07))) == 7

    @given(SCORES, PERCENT, st.booleans())
    def test_keeps_the_positive_or_the_floor(self, scores: list[int], percent: int, zero: bool) -> None:
        kept = places(keep_positive(torch.tensor(scores).float(), percent / 100, zero))
        positive = sum(score > 0 or (zero and score == 0) for score in scores)
        count = max(positive, -(-percent * len(scores) // 100))
        assert kept == sorted(ranked(scores)[:count])

    @pytest.mark.parametrize("bad", [-0.1, 1.1, NAN])
    def test_refuses_a_floor_that_is_no_share(self, bad: float) -> None:
        with pytest.raises(ValueError, match=f"min_fraction must be a share in \\[0, 1\\], got {bad}"):
            keep_positive(torch.ones(2), min_fraction=bad)


class TestKeepButWorstNegatives:
    @pytest.mark.parametrize(
        ("share", "expected"),
        [
            (0.0, [0, 1, 2, 3, 4, 5]),
            (0.24, [0, 1, 2, 3, 4, 5]),  # 0.96 of the 4 negative ones are none
            (0.25, [0, 1, 2, 4, 5]),
            (0.5, [0, 1, 2, 4]),  # of the tie between 2 and 5 the last goes
            (0.99, [0, 1, 4]),
            (1.0, [1, 4]),
        ],
    )
    def test_hand_worked(self, share: float, expected: list[int]) -> None:
        scores = torch.tensor([-0.1, 0.5, -0.3, -0.4, 0.0, -0.3])
        assert places(keep_but_worst_negatives(scores, share)) == expected

    def test_a_share_is_taken_as_it_is_written(self) -> None:
        assert 0.29 * 100 < 29
        assert len(places(keep_but_worst_negatives(-torch.ones(100), share=0.29))) == 71

    def test_nothing_negative_nothing_dropped(self) -> None:
        assert places(keep_but_worst_negatives(torch.tensor([0.0, 0.2, -0.0]))) == [0, 1, 2]

    @given(SCORES, PERCENT)
    def test_drops_from_the_negatives_only(self, scores: list[int], percent: int) -> None:
        kept = places(keep_but_worst_negatives(torch.tensor(scores).float(), percent / 100))
        negatives = [place for place in ranked(scores) if scores[place] < 0]
        dropped = percent * len(negatives) // 100
        assert kept == sorted(set(range(len(scores))) - set(negatives[len(negatives) - dropped :]))

    @pytest.mark.parametrize("bad", [-0.1, 1.1, NAN])
    def test_refuses_what_is_no_share(self, bad: float) -> None:
        with pytest.raises(ValueError, match=f"share must be in \\[0, 1\\], got {bad}"):
            keep_but_worst_negatives(torch.ones(2), share=bad)


class TestKeepTop:
    @pytest.mark.parametrize(
        ("fraction", "expected"),
        [(1e-9, [3]), (0.2, [3]), (0.4, [0, 3]), (0.5, [0, 2, 3]), (0.8, [0, 2, 3, 4]), (1.0, [0, 1, 2, 3, 4])],
    )
    def test_hand_worked(self, fraction: float, expected: list[int]) -> None:
        scores = torch.tensor([-0.1, -0.4, -0.1, 0.0, -0.1])
        assert places(keep_top(scores, fraction)) == expected

    @given(SCORES, st.integers(1, 100))
    def test_keeps_the_first_of_the_ranking(self, scores: list[int], percent: int) -> None:
        kept = places(keep_top(torch.tensor(scores).float(), percent / 100))
        assert kept == sorted(ranked(scores)[: -(-percent * len(scores) // 100)])

    def test_many_ties_stay_in_order(self) -> None:
        assert places(keep_top(torch.zeros(10_000), 0.1)) == list(range(1_000))

    @pytest.mark.parametrize("bad", [0.0, -0.1, 1.1, NAN])
    def test_refuses_what_is_no_share(self, bad: float) -> None:
        with pytest.raises(ValueError, match=f"fraction must be a share in \\(0, 1\\], got {bad}"):
            keep_top(torch.ones(2), fraction=bad)


class TestKeepMaxVariance:
    @pytest.mark.parametrize(
        ("rewards", "samples", "expected"),
        [
            ([0.0, 1.0, 5.0, 10.0], 2, [0, 3]),
            ([0.0, 1.0, 5.0, 10.0], 3, [0, 1, 3]),  # 0 1 10: 20.2 is more than 0 5 10: 16.7
            ([10.0, 9.0, 5.0, 0.0], 3, [0, 1, 3]),  # the mirror: 10 9 0
            ([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], 4, [0, 1, 4, 5]),  # half right, half wrong
            ([1.0, 0.0, 0.0, 0.0, 0.0, 0.0], 4, [0, 1, 2, 3]),  # one right: any three of the wrong
            ([0.0, 0.0, 1.0, 1.0], 3, [0, 2, 3]),  # 2/9 with one or two right: two
            ([0.1] * 5, 2, [0, 1]),
            ([0.3, 0.7], 2, [0, 1]),
            ([0.3], 2, [0]),
        ],
    )
    def test_hand_worked(self, rewards: list[float], samples: int, expected: list[int]) -> None:
        groups = torch.zeros(len(rewards), dtype=torch.long)
        assert places(keep_max_variance(torch.tensor(rewards), groups, samples)) == expected

    @given(st.lists(st.integers(-20, 20), min_size=2, max_size=9), st.integers(2, 5))
    def test_no_subset_of_the_size_has_a_larger_variance(self, rewards: list[int], samples: int) -> None:
        groups = torch.zeros(len(rewards), dtype=torch.long)
        kept = places(keep_max_variance(torch.tensor(rewards), groups, samples))
        size = min(samples, len(rewards))
        assert len(kept) == size
        best = max(spread(subset) for subset in combinations(rewards, size))
        assert spread([rewards[place] for place in kept]) == best

    @given(st.lists(st.tuples(st.integers(0, 3), st.floats(-100, 100, width=32)), max_size=14), st.integers(2, 4))
    def test_each_group_apart_in_any_order(self, episodes: list[tuple[int, float]], samples: int) -> None:
        rewards = torch.tensor([reward for _, reward in episodes])
        groups = torch.tensor([group for group, _ in episodes], dtype=torch.long)
        kept = keep_max_variance(rewards, groups, samples)
        for group in groups.unique():
            members = rewards[groups == group]
            alone = keep_max_variance(members, torch.zeros(len(members)), samples)
            assert kept[groups == group].tolist() == alone.tolist()
            assert alone.sum() == min(samples, len(members))

    @pytest.mark.parametrize("unit", [1e-20, 1.0, 1e20])
    @pytest.mark.parametrize("offset", [0.0, 1e4])
    def test_unit_and_offset_do_not_matter(self, unit: float, offset: float) -> None:
        rewards = unit * (offset + torch.tensor([1.0, 0.0, 4.0, 2.0, 9.0, 10.0, 8.0], dtype=torch.float64))
        kept = keep_max_variance(rewards, torch.zeros(7), samples=4)  # 0 1 9 10: 20.5; 0 8 9 10 only 15.7
        assert places(kept) == [0, 1, 4, 5]

    def test_refuses_less_than_two(self) -> None:
        with pytest.raises(ValueError, match="samples must be at least 2, got 1"):
            keep_max_variance(torch.ones(2), torch.zeros(2), samples=1)

    def test_refuses_rewards_without_a_variance(self) -> None:
        with pytest.raises(ValueError, match="rewards must be finite, got inf"):
            keep_max_variance(torch.tensor([1.0, INF]), torch.zeros(2), samples=2)

    def test_names_the_argument_of_the_wrong_shape(self) -> None:
        with pytest.raises(ValueError, match=r"groups must have shape \[n=2\], got \[3\]"):
            keep_max_variance(torch.ones(2), torch.zeros(3), samples=2)


def spread(rewards: tuple[int, ...] | list[int]) -> Fraction:
    """The variance, exactly."""
    mean = Fraction(sum(rewards), len(rewards))
    return sum(((reward - mean) ** 2 for reward in rewards), Fraction(0)) / len(rewards)


class TestKeepRightOrPositive:
    @pytest.mark.parametrize(
        ("threshold", "expected"), [(0.5, [0, 1, 4]), (0.0, [0, 1, 3, 4]), (-1.0, [0, 1, 2, 3, 4]), (1.0, [1, 4])]
    )
    def test_hand_worked(self, threshold: float, expected: list[int]) -> None:
        scores = torch.tensor([-0.3, 0.2, 0.0, -0.1, 0.1])
        rewards = torch.tensor([1.0, 1.0, 0.0, 0.5, 0.0])
        assert places(keep_right_or_positive(scores, rewards, threshold)) == expected

    def test_names_the_argument_of_the_wrong_shape(self) -> None:
        with pytest.raises(ValueError, match=r"rewards must have shape \[n=2\], got \[3\]"):
            keep_right_or_positive(torch.ones(2), torch.ones(3))


def test_no_episodes() -> None:
    none = torch.tensor([])
    assert places(keep_positive(none, min_fraction=0.25)) == []
    assert places(keep_but_worst_negatives(none)) == []
    assert places(keep_top(none)) == []
    assert places(keep_max_variance(none, none, samples=2)) == []
    assert places(keep_right_or_positive(none, none)) == []


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_scores_must_be_finite(bad: float) -> None:
    scores = torch.tensor([1.0, bad])
    message = f"scores must be finite, got {bad}: drop such episodes first"
    with pytest.raises(ValueError, match=message):
        keep_positive(scores)
    with pytest.raises(ValueError, match=message):
        keep_but_worst_negatives(scores)
    with pytest.raises(ValueError, match=message):
        keep_top(scores)
    with pytest.raises(ValueError, match=message):
        keep_right_or_positive(scores, torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_precision(dtype: torch.dtype) -> None:
    scores = torch.tensor([0.5, -1.0, 0.0], dtype=dtype)
    assert places(keep_positive(scores, min_fraction=0.5)) == [0, 2]
    assert places(keep_max_variance(scores, torch.zeros(3), samples=2)) == [0, 1]


class TestKeepAboveGap:
    @pytest.mark.parametrize(
        ("scores", "expected"),
        [
            ([109.0, 111.0, 101.0, 110.0], [0, 1, 3]),  # a part that all share changes nothing
            ([9.0, 11.0, 1.0, -1.0], [0, 1]),  # means 0 and 10, variances 1 and 1: ten apart
            ([9.0, 11.0, 7.0, 5.0], [0, 1, 2, 3]),  # means 6 and 10: four apart are not more than four
            ([9.0, 11.0, 6.9, 4.9], [0, 1]),
            ([1.0, 2.0, 0.0, 30.0], [0, 1, 2, 3]),  # the higher one is the exception
            ([5.0, 5.0, 5.0], [0, 1, 2]),
            ([5.0], [0]),
            ([], []),
        ],
    )
    def test_by_hand(self, scores: list[float], expected: list[int]) -> None:
        assert places(keep_above_gap(torch.tensor(scores))) == expected

    def test_of_one_group_next_to_nothing_goes(self) -> None:
        rows = torch.randn(500, 32, generator=torch.Generator().manual_seed(0))
        assert sum(float((~keep_above_gap(row)).float().mean()) for row in rows) / 500 < 0.01

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match="distance must be positive"):
            keep_above_gap(torch.ones(2), 0.0)
        with pytest.raises(ValueError, match="scores must be finite"):
            keep_above_gap(torch.tensor([NAN]))


class TestKeepLikeGold:
    GOLD = torch.tensor([3.0, 1.0, 2.0, 4.0])

    @pytest.mark.parametrize(
        ("fdr", "expected"),
        [
            (0.0, [0, 1, 2, 3, 4]),  # p-values of 1/5, 1/5, 2/5, 4/5 and 5/5
            (0.49, [0, 1, 2, 3, 4]),  # the second may be 0.49 * 2/5 at most
            (0.5, [2, 3, 4]),  # 1/5 <= 0.5 * 2/5; 2/5 > 0.5 * 3/5
            (0.67, [3, 4]),  # 2/5 <= 0.67 * 3/5; 4/5 > 0.67 * 4/5
            (0.99, [3, 4]),
        ],
    )
    def test_by_hand(self, fdr: float, expected: list[int]) -> None:
        assert places(keep_like_gold(torch.tensor([0.5, 0.9, 1.5, 3.0, 9.0]), self.GOLD, fdr)) == expected

    @given(SCORES, SCORES, st.integers(0, 99))
    def test_is_the_step_up_procedure_on_shares_of_gold_rows(
        self, scores: list[int], gold: list[int], percent: int
    ) -> None:
        fdr, n = Fraction(percent, 100), len(scores)
        shares = [Fraction(1 + sum(each <= score for each in gold), len(gold) + 1) for score in scores]
        passed = [k for k in range(1, n + 1) if sum(share <= fdr * k / n for share in shares) >= k]
        bound = fdr * max(passed, default=0) / max(1, n)
        expected = [place for place, share in enumerate(shares) if share > bound]
        found = keep_like_gold(torch.tensor(scores).float(), torch.tensor(gold).float(), percent / 100)
        assert places(found) == expected

    def test_next_to_nothing_goes_of_rows_like_the_gold_ones(self) -> None:
        draw = torch.Generator().manual_seed(0)
        for shape in (lambda x: x, torch.exp, lambda x: x**3, lambda x: 5 + x):  # no sign and no distribution matters
            rows = shape(torch.randn(1000, 96, generator=draw))
            dropped = [1 - float(keep_like_gold(row[64:], row[:64]).float().mean()) for row in rows]
            assert sum(share > 0 for share in dropped) / len(dropped) < 0.2  # a batch that loses any is a false one
            assert sum(dropped) / len(dropped) < 0.03

    def test_of_those_that_go_few_are_right(self) -> None:
        draw, found = torch.Generator().manual_seed(0), []
        for _ in range(1000):
            rows = torch.randn(64 + 32, generator=draw)
            rows[-8:] -= 2.5  # the last quarter of a batch is wrong
            dropped = ~keep_like_gold(rows[64:], rows[:64])
            found.append((float(dropped[:24].sum() / dropped.sum().clamp(min=1)), float(dropped[24:].float().mean())))
        false, power = (sum(part) / len(found) for part in zip(*found, strict=True))
        assert 0.1 < false < 0.2 * 24 / 32 + 0.01  # the bound is the rate times the share of right rows
        assert power > 0.5

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match="fdr must be a share"):
            keep_like_gold(self.GOLD, self.GOLD, 1.0)
        with pytest.raises(ValueError, match="gold_scores must be finite"):
            keep_like_gold(self.GOLD, torch.tensor([NAN]))
        with pytest.raises(ValueError, match=r"gold_scores must have shape \[m\]"):
            keep_like_gold(self.GOLD, torch.ones(2, 2))
