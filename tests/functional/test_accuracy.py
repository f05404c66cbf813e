from __future__ import annotations

from itertools import combinations
from math import comb

import pytest
import torch

from ippo.functional import difference_error, majority_vote, pass_at_k


class TestPassAtK:
    @pytest.mark.parametrize(("samples", "k"), [(5, 1), (5, 3), (6, 6)])
    def test_equals_the_count_over_all_choices(self, samples: int, k: int) -> None:
        expected = []
        for right in range(samples + 1):
            choices = list(combinations([True] * right + [False] * (samples - right), k))
            expected.append(sum(any(choice) for choice in choices) / len(choices))
        torch.testing.assert_close(pass_at_k(torch.arange(samples + 1), samples, k), torch.tensor(expected))

    def test_many_samples_do_not_overflow(self) -> None:
        # 10,000 over 5,000 is far outside of float64; with one right answer the chance is k / samples
        assert pass_at_k(torch.tensor([1]), samples=10_000, k=5_000).item() == pytest.approx(0.5, abs=1e-4)

    def test_certain_where_the_wrong_answers_run_out(self) -> None:
        right = torch.tensor([1, 6_000, 9_999])
        assert pass_at_k(right, samples=10_000, k=10_000).tolist() == [1.0, 1.0, 1.0]

    @pytest.mark.parametrize("k", [0, 5])
    def test_refuses_k_out_of_range(self, k: int) -> None:
        with pytest.raises(ValueError, match=f"got k={k} with 4 answers"):
            pass_at_k(torch.tensor([1]), samples=4, k=k)


class TestMajorityVote:
    @pytest.mark.parametrize(
        ("answers", "winner"),
        [
            (["1", "2", "2"], 1),
            (["2", "1", "1", "2"], 0),
            (["1", None, None, None], 0),
            ([None, "3", "4"], 1),
            ([None, None], None),
            ([], None),
        ],
    )
    def test_hand_counted(self, answers: list[str | None], winner: int | None) -> None:
        assert majority_vote(answers) == winner

    def test_answers_that_are_equal_vote_together(self) -> None:
        answers = ["35", "36", "35", "36.0", "36.00"]
        assert majority_vote(answers) == 0
        assert majority_vote(answers, equal=lambda a, b: float(a) == float(b)) == 1


class TestDifferenceError:
    @pytest.mark.parametrize(("first", "last", "count"), [(0.5, 0.5, 1), (0.2, 0.7, 3), (0.0, 0.25, 4), (1.0, 1.0, 5)])
    def test_equals_the_deviation_over_all_outcomes(self, first: float, last: float, count: int) -> None:
        def binomial(share: float) -> list[tuple[float, float]]:
            counts = range(count + 1)
            return [(n / count, comb(count, n) * share**n * (1 - share) ** (count - n)) for n in counts]

        outcomes = [(b - a, p * q) for a, p in binomial(first) for b, q in binomial(last)]
        mean = sum(value * chance for value, chance in outcomes)
        variance = sum((value - mean) ** 2 * chance for value, chance in outcomes)
        assert difference_error(first, last, count) == pytest.approx(variance**0.5)

    def test_needs_an_answer(self) -> None:
        with pytest.raises(ValueError, match="count must be at least 1"):
            difference_error(0.5, 0.5, 0)
