from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torchmetrics import Metric

from ippo.metrics import ExactMatch, FalsePositiveRate, HackedRate, MajorityVote, PassAtK, UnverifiableRate


class JudgedVote(MajorityVote):
    """The vote whose answers are judged already, with its arguments in a row."""

    def update(self, answers: Any, correct: Any) -> None:  # type: ignore[override]
        super().update(answers, correct=correct)


# Each metric with two batches of different size and the value worked out by hand over both of them.
CASES: dict[str, tuple[Callable[[], Metric], list[tuple[Any, ...]], float]] = {
    "exact match": (
        ExactMatch,
        [(torch.tensor([[1, 0], [0, 0]]),), (torch.tensor([[1, 1]]),)],
        3 / 6,  # the mean of the batches' 1/4 and 2/2 would be 5/8
    ),
    "majority vote": (
        MajorityVote,
        [([["1", "2", "2"], ["3", None, None], [None, "4"]], ["2", "3", "5"]), ([[None], []], ["6", "7"])],
        2 / 5,
    ),
    "majority vote of judged answers": (
        JudgedVote,
        [([["1", "2", "2"], ["3", None, None]], [[1, 0, 1], [1, 0, 0]]), ([[None]], [[0]])],
        1 / 3,  # "2" wins, and the sample that it is first given by is judged wrong
    ),
    "pass at 2": (
        lambda: PassAtK(k=2),
        [(torch.tensor([[1, 0, 0], [0, 0, 0]]),), (torch.tensor([[1, 1, 0, 0]]),)],
        (2 / 3 + 0 + 5 / 6) / 3,  # 1 - 1/3; 1 - 3/3; 1 - 1/6
    ),
    "false positive rate": (
        FalsePositiveRate,
        [
            (torch.tensor([True, True, False]), torch.tensor([True, False, False])),
            (torch.tensor([True, True, True]), torch.tensor([True, True, True])),
        ],
        1 / 5,
    ),
    "false positive rate of what can be checked": (
        FalsePositiveRate,
        [
            (torch.tensor([1, 1, 0]), torch.tensor([1, 0, 0]), torch.tensor([1, 0, 0])),
            (torch.tensor([1, 1, 1]), torch.tensor([0, 1, 0]), torch.tensor([1, 1, 0])),
        ],
        1 / 3,
    ),
    "hacked rate": (
        HackedRate,
        [(torch.tensor([True, False, False, False]),), (torch.tensor([True]),)],
        2 / 5,
    ),
    "unverifiable rate": (
        UnverifiableRate,
        [
            (torch.tensor([1, 1, 0]), torch.tensor([1, 0, 0])),
            (torch.tensor([1, 1, 1]), torch.tensor([1, 1, 0])),
        ],
        2 / 5,
    ),
}


@pytest.mark.parametrize(("make", "batches", "expected"), CASES.values(), ids=CASES)
class TestEveryMetric:
    def test_batches_count_by_their_size(
        self, make: Callable[[], Metric], batches: list[tuple[Any, ...]], expected: float
    ) -> None:
        metric = make()
        for batch in batches:
            metric.update(*batch)
        assert metric.compute().item() == pytest.approx(expected)

    def test_states_of_two_ranks_add_up(
        self, make: Callable[[], Metric], batches: list[tuple[Any, ...]], expected: float
    ) -> None:
        first, second = make(), make()
        first.update(*batches[0])
        second.update(*batches[1])
        first.merge_state(second)
        assert first.compute().item() == pytest.approx(expected)

    def test_reset_forgets(self, make: Callable[[], Metric], batches: list[tuple[Any, ...]], expected: float) -> None:
        metric = make()
        metric.update(*batches[0])
        metric.reset()
        for batch in batches:
            metric.update(*batch)
        assert metric.compute().item() == pytest.approx(expected)

    def test_forward_gives_the_value_of_the_batch_alone(
        self, make: Callable[[], Metric], batches: list[tuple[Any, ...]], expected: float
    ) -> None:
        metric, alone = make(), make()
        metric.update(*batches[0])
        alone.update(*batches[1])
        assert metric(*batches[1]) == alone.compute()
        assert metric.compute().item() == pytest.approx(expected)


def test_directions() -> None:
    assert ExactMatch.higher_is_better
    assert MajorityVote.higher_is_better
    assert PassAtK.higher_is_better
    assert FalsePositiveRate.higher_is_better is False


def test_majority_vote_judges_with_the_given_equality() -> None:
    answers, golds = [["35", "36", "35", "36.0", "36.00"]], ["36."]
    strict, numeric = MajorityVote(), MajorityVote(equal=lambda a, b: float(a) == float(b))
    strict.update(answers, golds)
    numeric.update(answers, golds)
    assert strict.compute() == 0.0
    assert numeric.compute() == 1.0


def test_the_winner_of_a_vote_is_right_if_its_own_sample_was() -> None:
    metric = MajorityVote(equal=lambda a, b: a == b == "never")  # this equality would find no winner right
    metric.update([["1", "1"], ["2", "2"]], correct=torch.tensor([[True, True], [False, False]]))
    assert metric.compute() == 0.5


def test_a_vote_is_held_with_each_prompts_own_tolerance() -> None:
    def near(answer: str, other: str, tolerance: float) -> bool:
        return abs(float(answer) - float(other)) <= tolerance

    metric, votes = MajorityVote(equal=near), ["3.0", "5", "5", "3.1", "3.1"]
    metric.update([votes, votes], ["3", "3"], columns=[{"tolerance": 0.2}, {"tolerance": 0.0}])
    assert metric.compute() == 0.5  # three votes around 3.0 in the first prompt; two for 5 come first in the second


@pytest.mark.parametrize("make", [ExactMatch, lambda: PassAtK(k=1)], ids=["exact match", "pass at 1"])
def test_a_prompt_counts_beyond_the_whole_numbers_of_float32(make: Callable[[], Metric]) -> None:
    metric, prompt = make(), torch.tensor([[True]])
    metric.update(prompt)
    hits, trials = metric.hits.clone(), metric.trials.clone()
    metric.hits, metric.trials = hits * 2**24, trials * 2**24
    for _ in range(3):
        metric.update(prompt)
    assert metric.hits == (2**24 + 3) * hits
    assert metric.compute() == 1.0


def test_half_precision_leaves_the_counts_alone() -> None:
    metric = ExactMatch().half().to(torch.bfloat16)
    metric.update(torch.ones(1, 4099))
    metric.update(torch.zeros(1, 1))
    assert metric.hits == 4099
    assert metric.trials == 4100


def test_chances_are_added_up_to_the_last_digit_of_float32() -> None:
    metric = PassAtK(k=2)
    for _ in range(50):
        metric.update(torch.tensor([[1] + [0] * 6]).repeat(400, 1))
    assert metric.compute().item() == pytest.approx(2 / 7, rel=1e-7)


def test_a_share_of_right_answers_is_none_where_there_are_none() -> None:
    metric, unverifiable, wrong = FalsePositiveRate(), UnverifiableRate(), torch.tensor([False, False])
    metric.update(correct=wrong, faithful=torch.tensor([True, False]))
    unverifiable.update(correct=wrong, verifiable=torch.tensor([True, False]))
    assert metric.compute().isnan()
    assert unverifiable.compute().isnan()
    metric.update(correct=~wrong, faithful=wrong, verifiable=wrong)  # right, but nothing can be said of them
    assert metric.compute().isnan()


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="got k=3 with 2 answers: sample at least 3 answers a prompt"):
        PassAtK(k=3).update(torch.ones(4, 2))
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        PassAtK(k=0)
    with pytest.raises(ValueError, match=r"correct must have shape \[n, k\], got \[4\]"):
        ExactMatch().update(torch.ones(4))
    with pytest.raises(ValueError, match="golds must be one a prompt, got 1 for 2 prompts"):
        MajorityVote().update([["1"], ["2"]], ["1"])
    with pytest.raises(ValueError, match="correct must be one an answer, got 1 rows for 2 prompts"):
        MajorityVote().update([["1"], ["2"]], correct=[[True]])
    with pytest.raises(ValueError, match="give golds or correct"):
        MajorityVote().update([["1"], ["2"]])
    with pytest.raises(ValueError, match=r"faithful must have the shape of correct, \[2\], got \[3\]"):
        FalsePositiveRate().update(torch.ones(2), torch.ones(3))
