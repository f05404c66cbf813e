"""What is measured on validation and test answers."""

from __future__ import annotations

import hashlib
import inspect
import json
import operator
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from ippo.data.task import Columns
from ippo.errors import OwnAttributeErrors
from ippo.metrics import (
    ExactMatch,
    FalsePositiveRate,
    HackedRate,
    MajorityVote,
    PassAtK,
    UnfinishedRate,
    UnverifiableRate,
)
from ippo.rewards import Verdicts

Entry = TypeVar("Entry")


class Evaluation(OwnAttributeErrors, nn.Module):
    """Exact match, majority vote, Pass@k, false-positive, hacked, unverifiable and unfinished rate of ``k`` answers a
    prompt, and exact match of the greedy one. All of them read the same verdicts; only the reward, where it is asked,
    is what the training believes.

    Args:
        samples: k.
        equal: ``equal(answer, other)``, whether two answers count as one in the majority vote; where it takes further
            keywords, it gets the prompt's columns.
        reward: whether the training reward is asked about the answers, too.
    """

    def __init__(self, samples: int, equal: Callable[..., bool] = operator.eq, reward: bool = False) -> None:
        super().__init__()
        self.samples = samples
        self.em, self.mv, self.pass_at_k = ExactMatch(), MajorityVote(equal), PassAtK(samples)
        self.false_positive, self.unverifiable = FalsePositiveRate(), UnverifiableRate()
        self.hacked, self.unfinished = HackedRate(), UnfinishedRate()
        self.em_greedy = ExactMatch()
        self.reward = MeanMetric(nan_strategy="ignore") if reward else None

    def update(self, verdicts: Verdicts, batch: Columns) -> None:
        """Take in the answers to some prompts.

        Args:
            verdicts: on ``k`` answers to each prompt in a row.
            batch: the prompts' own columns, one entry a prompt.
        """
        device, k = self.em.device, self.samples
        correct = torch.tensor(verdicts.correct, device=device)
        faithful = torch.tensor([chain == "faithful" for chain in verdicts.chains], device=device)
        verifiable = torch.tensor([chain != "unverifiable" for chain in verdicts.chains], device=device)
        self.em.update(correct.view(-1, k))
        self.pass_at_k.update(correct.view(-1, k))
        wanted = _wanted(self.mv.equal, batch)
        columns = [{name: batch[name][prompt] for name in wanted} for prompt in range(len(correct) // k)]
        self.mv.update(_grouped(verdicts.votes, k), correct=_grouped(verdicts.correct, k), columns=columns)
        self.false_positive.update(correct, faithful, verifiable)
        self.unverifiable.update(correct, verifiable)
        self.hacked.update(torch.tensor([chain == "hacked" for chain in verdicts.chains], device=device))
        self.unfinished.update(torch.tensor(verdicts.finished, device=device))

    def update_greedy(self, verdicts: Verdicts) -> None:
        """Take in the greedy answers to some prompts, one each."""
        self.em_greedy.update(torch.tensor(verdicts.correct, device=self.em_greedy.device).unsqueeze(1))

    def update_reward(self, rewards: Tensor) -> None:
        """Take in what the training reward gives to the sampled answers ([n], NaN where it does not apply)."""
        assert self.reward is not None
        self.reward.update(rewards)

    def reset(self) -> None:
        """Forget all answers."""
        for metric in self.metrics.values():
            metric.reset()

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics under the names of their curves."""
        asked = {} if self.reward is None else {"reward": self.reward}
        return {
            "em": self.em,
            "em_greedy": self.em_greedy,
            "mv": self.mv,
            "pass@k": self.pass_at_k,
            "false_positive": self.false_positive,
            "unverifiable": self.unverifiable,
            "hacked": self.hacked,
            "unfinished": self.unfinished,
            **asked,
        }


def seed_of(prompts: Sequence[str], place: int, seed: int) -> int:
    """The seed of the answers to a batch of problems. It depends on the problems alone, so that one policy has one
    figure, whatever was drawn before.

    Args:
        prompts: of the batch.
        place: the batch's; one that comes twice is not answered twice alike.
        seed: ``evaluation.seed``.

    Example:
        >>> first = seed_of(["1 + 1?"], place=0, seed=0)
        >>> first == seed_of(["1 + 1?"], place=0, seed=0)
        True
        >>> first in (seed_of(["2?"], 0, 0), seed_of(["1 + 1?"], 1, 0), seed_of(["1 + 1?"], 0, 1))
        False
    """
    found = hashlib.sha256(json.dumps([list(prompts), place, seed]).encode())
    return int.from_bytes(found.digest()[:6], "big")


def _grouped(entries: Sequence[Entry], size: int) -> list[Sequence[Entry]]:
    return [entries[start : start + size] for start in range(0, len(entries), size)]


def _wanted(equal: Callable[..., bool], names: Columns) -> list[str]:
    """The columns that an equality takes by name, or all where it takes any: most know nothing but the two answers.

    Example:
        >>> _wanted(operator.eq, {"tolerance": []}), _wanted(lambda a, b, tolerance: a == b, {"tolerance": [], "x": []})
        ([], ['tolerance'])
    """
    first, second, *further = inspect.signature(equal).parameters.values()
    own = {one.name for one in (first, second) if one.kind is not one.POSITIONAL_ONLY}
    takes_any = any(one.kind is one.VAR_KEYWORD for one in further)
    named = {one.name for one in further}
    return [name for name in names if name in named or (takes_any and name not in own)]
