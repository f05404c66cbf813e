from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate

import pytest
from scipy import stats

from ippo.functional import binomial_evidence, cusum, with_odds


class TestWithOdds:
    @pytest.mark.parametrize(("share", "ratio", "expected"), [(0.5, 3, 0.75), (0.25, 1, 0.25), (0, 9, 0), (1, 9, 1)])
    def test_by_hand(self, share: float, ratio: float, expected: float) -> None:
        assert with_odds(share, ratio) == expected

    def test_multiplies_the_odds(self) -> None:
        changed = with_odds(0.3, 2.5)
        assert changed / (1 - changed) == pytest.approx(2.5 * 0.3 / 0.7)


class TestBinomialEvidence:
    def test_is_the_ratio_of_the_likelihoods(self) -> None:
        found = binomial_evidence(17, 40, usual=0.3, changed=0.5)
        assert found == pytest.approx(stats.binom.logpmf(17, 40, 0.5) - stats.binom.logpmf(17, 40, 0.3))

    def test_of_no_trial_there_is_none(self) -> None:
        assert binomial_evidence(0, 0, 0.3, 0.5) == 0.0

    def test_counts_add_up(self) -> None:
        apart = binomial_evidence(3, 10, 0.3, 0.5) + binomial_evidence(8, 12, 0.3, 0.5)
        assert apart == pytest.approx(binomial_evidence(11, 22, 0.3, 0.5))


class TestCusum:
    def test_by_hand(self) -> None:
        steps = [-1.0, 2.0, -0.5, -3.0, 1.0, 1.5]
        assert list(accumulate(steps, cusum, initial=0.0)) == [0.0, 0.0, 2.0, 1.5, 0.0, 1.0, 2.5]

    def test_is_the_sum_less_its_lowest_so_far(self) -> None:
        steps = [math.sin(7 * step) for step in range(50)]
        sums = list(accumulate(steps, initial=0.0))
        expected = [total - min(sums[: place + 1]) for place, total in enumerate(sums)]
        assert list(accumulate(steps, cusum, initial=0.0)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: with_odds(1.5, 2.0), r"share must be in \[0, 1\], got 1.5"),
        (lambda: with_odds(0.5, 0.0), "ratio must be above 0, got 0.0"),
        (lambda: binomial_evidence(3, 2, 0.3, 0.5), "hits must be between 0 and 2, got 3"),
        (lambda: binomial_evidence(1, 2, 0.0, 0.5), r"usual must be in \(0, 1\), got 0.0"),
        (lambda: binomial_evidence(1, 2, 0.3, 1.0), r"changed must be in \(0, 1\), got 1.0"),
    ],
)
def test_refuses_what_is_out_of_range(call: Callable[[], float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
