"""What is measured on validation and test answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ippo.metrics import ExactMatch, FalsePositiveRate, MajorityVote, PassAtK
from ippo.rewards import ChainClass


class Evaluation(nn.Module):
    """Exact match, majority vote, Pass@k and false-positive rate of ``k`` answers a prompt.

    Args:
        samples: k.
    """

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.samples = samples
        self.em, self.mv = ExactMatch(), MajorityVote()
        self.pass_at_k, self.false_positive = PassAtK(samples), FalsePositiveRate()

    def update(
        self, answers: Sequence[str | None], golds: Sequence[str], correct: Sequence[bool], chains: Sequence[ChainClass]
    ) -> None:
        """Take in the answers of some prompts: ``k`` of each in a row, and one gold answer a prompt."""
        k = self.samples
        right = torch.tensor(list(correct), device=self.em.device)
        faithful = torch.tensor([chain == "faithful" for chain in chains], device=self.em.device)
        self.em.update(right.view(-1, k))
        self.pass_at_k.update(right.view(-1, k))
        self.mv.update([list(answers[start : start + k]) for start in range(0, len(answers), k)], list(golds))
        self.false_positive.update(right, faithful)
