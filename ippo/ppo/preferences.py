"""Gold that says which of two answers is better, instead of how to answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import torch
from torch import Tensor, nn

from ippo.data.demonstrations import encode_demonstrations
from ippo.data.source import Source
from ippo.distributed import rank, world_size
from ippo.errors import UsageError, require
from ippo.functional import aggregate, preference_loss
from ippo.influence import Buffer, Direction, ValidationDirection
from ippo.models import response_logprobs
from ippo.models.configuration import context_length
from ippo.rollout.sequences import Sequences, within_budget

COLUMNS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True, eq=False)
class Pairs:
    """Of ``n`` prompts the answer that is preferred, and the other one."""

    chosen: Sequences
    rejected: Sequences

    def __len__(self) -> int:
        return len(self.chosen)

    def to(self, device: torch.device | str) -> Pairs:
        """The same pairs on another device."""
        return Pairs(self.chosen.to(device), self.rejected.to(device))

    def rows(self, index: Tensor) -> Pairs:
        """The pairs that ``index`` ([m] integers) picks, without columns of padding alone."""
        return Pairs(self.chosen.rows(index).trim(), self.rejected.rows(index).trim())

    def chunks(self, size: int, tokens: float | None = None) -> list[Pairs]:
        """Micro-batches of at most ``size`` pairs, and ``tokens`` in either half of them."""
        longer = torch.maximum(self.chosen.lengths, self.rejected.lengths)
        prompts = self.chosen.prompt_mask.sum(1)
        places = within_budget(prompts, longer, size, math.inf if tokens is None else tokens)
        return [self.rows(index) for index in places]


def preference_losses(policy: nn.Module, pairs: Pairs) -> Tensor:
    """[n] :func:`ippo.functional.preference_loss` of each pair, the prompt not counted."""
    chosen, rejected = (
        aggregate(response_logprobs(policy, side), side.response_mask, "sum") for side in (pairs.chosen, pairs.rejected)
    )
    return preference_loss(chosen, rejected)


class PreferenceDirection(Direction):
    """The gradient of the mean preference loss of gold pairs, in the place of gold solutions.

    An episode then scores above 0 if a step on it makes the policy prefer the chosen answers more: what they have, and
    the rejected ones lack, is what counts. It tells gamed answers from right ones and gives the alarm; a filter that
    acts by it drives the policy away from the rejected answers without end (docs/gold.md). The pairs are never trained
    on. For a :class:`ippo.PPOModule`, whose tokenizer they take; any other loss of any other gold set goes into a
    :class:`~ippo.influence.ValidationDirection`.

    Args:
        pairs: rows with ``prompt``, ``chosen`` and ``rejected``, or a file of them (JSON lines, JSON, CSV, parquet).
            A prompt is the text that the policy reads, its chat template included.

    Raises:
        UsageError: if there is no pair, a text is missing, or the two answers of a pair are the same; when it is bound
            to a module, if a row is longer than the policy's context.
    """

    def __init__(self, pairs: Union[str, Path, Sequence[Mapping[str, Any]]]) -> None:
        if isinstance(pairs, str | Path):
            found = Source("a file of pairs", COLUMNS, argument="pairs").read(pairs)
            pairs = [row for rows in found.values() for row in rows]
        require(len(pairs) > 0, "pairs", len(pairs), "give at least one")
        for place, row in enumerate(pairs):
            texts = [row.get(name) for name in COLUMNS]
            whole = all(isinstance(text, str) and text for text in texts)
            require(whole, f"pairs[{place}]", dict(row), f"give a text for each of {', '.join(COLUMNS)}")
            require(texts[1] != texts[2], f"pairs[{place}]", texts[1], "both answers are the same: remove the row")
        self.pairs = pairs

    def bind(self, host: Any) -> Direction:
        """See :meth:`Direction.bind`; each rank reads its share."""
        remedy = "it takes a PPOModule's tokenizer: elsewhere give ValidationDirection(batches, losses)"
        require(hasattr(host, "ends"), "direction", "PreferenceDirection()", remedy)
        context, halves = context_length(host.model.policy), []
        for side in COLUMNS[1:]:
            rows = [{"prompt": row["prompt"], "solution": row[side]} for row in self.pairs]
            halves.append(encode_demonstrations(host.tokenizer, rows, context, "pairs", host.ends.closing))
        own = Pairs(*halves).rows(torch.arange(rank(), len(self.pairs), world_size()))
        size, tokens = host.ppo.micro_batch_size, host.ppo.token_budget  # of which a pair takes both halves
        batches = own.to(host.device).chunks(max(1, size // 2), None if tokens is None else tokens / 2)
        return ValidationDirection(getattr(host, "prepare_batches", list)(batches), preference_losses)

    def compute(self, module: nn.Module, buffer: Buffer | None = None) -> dict[str, Tensor]:
        raise UsageError("direction", "PreferenceDirection()", "bind it to a PPOModule, as a filter does")
