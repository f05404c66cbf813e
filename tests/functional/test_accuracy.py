from __future__ import annotations

from itertools import combinations

import pytest
import torch

from ippo.functional import majority_vote, pass_at_k


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
