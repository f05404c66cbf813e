"""Metrics of sampled answers: shares in [0, 1], exact over batches and ranks of any size."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ippo.functional.accuracy import majority_vote, pass_at_k
from ippo.functional.layout import check_axes

_UNITS = 2**32
"""Parts of a whole in which chances are added up: finer than float32, and room for 2^31 prompts."""


class _Share(Metric):
    """Hits over trials; a subclass says in ``update`` what is tried and hit. A share of no trial is ``of_nothing``.

    Both are whole numbers: a float32 stops counting at 2^24, and no device lacks 64-bit integers, as MPS does float64.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    of_nothing = 0.0
    hits: Tensor
    trials: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("hits", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("trials", default=torch.tensor(0), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        """Return the share so far, a scalar."""
        return torch.where(self.trials > 0, self.hits / self.trials.clamp(min=1), self.of_nothing)


class ExactMatch(_Share):
    """The accuracy of a single answer, averaged over the k answers sampled for each prompt.

    Args:
        kwargs: options of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = ExactMatch()
        >>> metric.update(torch.tensor([[True, False], [False, False]]))
        >>> metric.compute()
        tensor(0.2500)
    """

    def update(self, correct: Tensor) -> None:
        """Count right answers.

        Args:
            correct: [n, k], whether each answer to each prompt is right.

        Raises:
            ValueError: if ``correct`` is not [n, k].
        """
        check_axes("nk", correct=correct)
        self.hits += correct.bool().sum()
        self.trials += correct.numel()


class MajorityVote(_Share):
    """The share of prompts on which the most frequent answer is the gold one (self-consistency).

    Ties go to the answer seen first; a prompt without any answer is a miss. Where it is known which answers are right,
    the winner is right if its own sample is: then k equal answers have the majority vote that they have as
    :class:`ExactMatch`, whatever the equality thinks of the gold answer.

    Args:
        equal: ``equal(answer, other)``, whether they are one vote; with golds alone it judges the winner, too, as
            ``equal(gold, winner)``.
        kwargs: options of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = MajorityVote()
        >>> metric.update([["4", "5", "5"], ["7", None, None], [None, None, None]], golds=["5", "7", "9"])
        >>> metric.compute()
        tensor(0.6667)
        >>> metric.update([["4", "5", "5.0"]], correct=[[False, True, True]])
        >>> metric.compute()  # "4" was seen first, and no other has more votes
        tensor(0.5000)
    """

    def __init__(self, equal: Callable[..., bool] = operator.eq, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.equal = equal

    def update(
        self,
        answers: Sequence[Sequence[str | None]],
        golds: Sequence[str] | None = None,
        *,
        correct: Sequence[Sequence[bool]] | Tensor | None = None,
        columns: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Hold one vote a prompt.

        Args:
            answers: the answers to each prompt; None stands for no answer and does not vote.
            golds: the gold answer to each prompt.
            correct: in their place, whether each answer to each prompt is right.
            columns: further keywords of ``equal`` for each prompt, such as its tolerance.

        Raises:
            ValueError: unless there is either a gold answer a prompt, or a verdict an answer.
        """
        if (golds is None) == (correct is None):
            raise ValueError("give golds or correct: one of them says whether a winner is right")
        if golds is not None and len(answers) != len(golds):
            raise ValueError(f"golds must be one a prompt, got {len(golds)} for {len(answers)} prompts")
        if correct is not None and [len(row) for row in correct] != [len(row) for row in answers]:
            raise ValueError(f"correct must be one an answer, got {len(correct)} rows for {len(answers)} prompts")
        hits = 0
        for prompt, votes in enumerate(answers):
            equal = partial(self.equal, **columns[prompt]) if columns is not None else self.equal
            winner = majority_vote(votes, equal)
            if winner is not None and correct is not None:
                hits += bool(correct[prompt][winner])
            elif winner is not None and golds is not None:
                hits += bool(equal(golds[prompt], votes[winner]))
        self.hits += hits
        self.trials += len(answers)


class PassAtK(_Share):
    """The chance that at least one of k answers is right, without bias from k or more answers a prompt.

    Args:
        k: the number of answers that may be tried.
        kwargs: options of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: if k is below 1.

    Example:
        >>> metric = PassAtK(k=2)
        >>> metric.update(torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0]]))
        >>> metric.compute()  # (3/6 + 0/6) / 2: of the first prompt's 6 pairs, 3 hold its right answer
        tensor(0.2500)
    """

    def __init__(self, k: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.k = k

    def compute(self) -> Tensor:
        """Return the mean chance so far, a scalar."""
        return super().compute() / _UNITS

    def update(self, correct: Tensor) -> None:
        """Estimate the chance for each prompt.

        Args:
            correct: [n, m], whether each answer to each prompt is right; m >= k may differ between batches.

        Raises:
            ValueError: if ``correct`` is not [n, m], or m < k.
        """
        check_axes("nm", correct=correct)
        prompts, samples = correct.shape
        chances = pass_at_k(correct.bool().sum(dim=1), samples, self.k)
        self.hits += (chances * _UNITS).round().long().sum()
        self.trials += prompts


class FalsePositiveRate(_Share):
    """The share of right answers that were reached by unfaithful reasoning; NaN if none could be checked.

    Read it beside :class:`ExactMatch`, because a policy that is never right has no false positives either, and beside
    :class:`UnverifiableRate`: right answers whose reasoning could not be checked are left out of both sides.

    Args:
        kwargs: options of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = FalsePositiveRate()
        >>> metric.update(correct=torch.tensor([1, 1, 0]), faithful=torch.tensor([1, 0, 0]))
        >>> metric.compute()
        tensor(0.5000)
    """

    higher_is_better = False
    of_nothing = math.nan

    def update(self, correct: Tensor, faithful: Tensor, verifiable: Tensor | None = None) -> None:
        """Count right answers and the unfaithful ones among them.

        Args:
            correct: of any shape, whether each answer is right.
            faithful: of the same shape, whether its reasoning is sound; read only where the answer is right.
            verifiable: of the same shape, whether that could be told; everywhere if left out.

        Raises:
            ValueError: if the shapes differ.
        """
        counted = correct.bool()
        if verifiable is not None:
            _same_shape(correct, verifiable=verifiable)
            counted = counted & verifiable.bool()
        _same_shape(correct, faithful=faithful)
        self.hits += (counted & ~faithful.bool()).sum()
        self.trials += counted.sum()


class UnverifiableRate(_Share):
    """The share of right answers whose reasoning could not be checked, neither faithful nor unfaithful; NaN if no
    answer was right.

    Args:
        kwargs: options of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = UnverifiableRate()
        >>> metric.update(correct=torch.tensor([1, 1, 0]), verifiable=torch.tensor([1, 0, 0]))
        >>> metric.compute()
        tensor(0.5000)
    """

    higher_is_better = False
    of_nothing = math.nan

    def update(self, correct: Tensor, verifiable: Tensor) -> None:
        """Count right answers and those among them that nothing can be said about.

        Args:
            correct: of any shape, whether each answer is right.
            verifiable: of the same shape, whether its reasoning could be checked; read only where it is right.

        Raises:
            ValueError: if the shapes differ.
        """
        _same_shape(correct, verifiable=verifiable)
        self.hits += (correct.bool() & ~verifiable.bool()).sum()
        self.trials += correct.bool().sum()


class HackedRate(_Share):
    """The share of answers that are wrong and pass through a known hole of the training verifier.

    Args:
        kwargs: options of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = HackedRate()
        >>> metric.update(torch.tensor([True, False, False, False]))
        >>> metric.compute()
        tensor(0.2500)
    """

    higher_is_better = False

    def update(self, hacked: Tensor) -> None:
        """Count answers and the hacked ones among them.

        Args:
            hacked: of any shape, whether each answer is one.
        """
        self.hits += hacked.bool().sum()
        self.trials += hacked.numel()


class UnfinishedRate(_Share):
    """The share of responses that were cut before they ended; all of them count as wrong.

    Args:
        kwargs: options of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = UnfinishedRate()
        >>> metric.update(torch.tensor([True, True, False, True]))
        >>> metric.compute()
        tensor(0.2500)
    """

    higher_is_better = False

    def update(self, finished: Tensor) -> None:
        """Count responses and the unfinished ones among them.

        Args:
            finished: of any shape, whether each response ended by itself.
        """
        self.hits += (~finished.bool()).sum()
        self.trials += finished.numel()


def _same_shape(correct: Tensor, **others: Tensor) -> None:
    for name, other in others.items():
        if other.shape != correct.shape:
            raise ValueError(f"{name} must have the shape of correct, {list(correct.shape)}, got {list(other.shape)}")
