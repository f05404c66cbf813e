"""What is measured on validation and test answers."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torchmetrics import Metric

from ippo.errors import OwnAttributeErrors
from ippo.metrics import ExactMatch, FalsePositiveRate, MajorityVote, PassAtK, UnverifiableRate
from ippo.rewards import ChainClass


class Evaluation(OwnAttributeErrors, nn.Module):
    """Exact match, majority vote, Pass@k, false-positive and unverifiable rate of ``k`` answers a prompt, and exact
    match of the greedy one.

    Args:
        samples: k.
        equal: whether two answers count as one in the majority vote.
    """

    def __init__(self, samples: int, equal: Callable[[str, str], bool] = operator.eq) -> None:
        super().__init__()
        self.samples = samples
        self.em, self.mv, self.pass_at_k = ExactMatch(), MajorityVote(equal), PassAtK(samples)
        self.false_positive, self.unverifiable = FalsePositiveRate(), UnverifiableRate()
        self.em_greedy = ExactMatch()

    def update(
        self, answers: Sequence[str | None], golds: Sequence[str], correct: Sequence[bool], chains: Sequence[ChainClass]
    ) -> None:
        """Take in the answers of some prompts: ``k`` of each in a row, and one gold answer a prompt."""
        k = self.samples
        right = torch.tensor(list(correct), device=self.em.device)
        faithful = torch.tensor([chain == "faithful" for chain in chains], device=self.em.device)
        verifiable = torch.tensor([chain != "unverifiable" for chain in chains], device=self.em.device)
        self.em.update(right.view(-1, k))
        self.pass_at_k.update(right.view(-1, k))
        self.mv.update([list(answers[start : start + k]) for start in range(0, len(answers), k)], list(golds))
        self.false_positive.update(right, faithful, verifiable)
        self.unverifiable.update(right, verifiable)

    def update_greedy(self, correct: Sequence[bool]) -> None:
        """Take in the greedy answers to some prompts, one each."""
        self.em_greedy.update(torch.tensor(list(correct), device=self.em_greedy.device).unsqueeze(1))

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics under the names of their curves."""
        return {
            "em": self.em,
            "em_greedy": self.em_greedy,
            "mv": self.mv,
            "pass@k": self.pass_at_k,
            "false_positive": self.false_positive,
            "unverifiable": self.unverifiable,
        }
