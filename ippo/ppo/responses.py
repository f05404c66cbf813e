"""Responses on their way from the engine to whoever judges and rewards them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ippo.data.task import Columns
from ippo.rewards import Verdicts
from ippo.rollout.sequences import Sequences


@dataclass(frozen=True)
class Responses:
    """What a policy wrote for some rows of a task, and what is held of it.

    Args:
        columns: the rows, each as often as it was answered.
        sequences: prompts and responses as tokens, with ``finished``.
        texts: the responses, without special tokens.
        verdicts: on each.
    """

    columns: Columns
    sequences: Sequences
    texts: list[str]
    verdicts: Verdicts

    @property
    def finished(self) -> Tensor:
        """[n] bool, whether each response ended by itself."""
        assert self.sequences.finished is not None
        return self.sequences.finished

    @property
    def table(self) -> dict[str, Sequence[Any]]:
        """All that is known of them, a row a response."""
        own = {"response": self.texts, "gold": self.columns["answer"], "finished": self.verdicts.finished}
        return {**self.columns, **own, **self.verdicts.extras}

    @property
    def arguments(self) -> dict[str, list[Any]]:
        """Columns and texts under the names that rewards and checks take."""
        return arguments(self.columns, self.texts)


def arguments(columns: Columns, completions: list[str]) -> dict[str, list[Any]]:
    """Columns and completions under the names that rewards and checks take."""
    others = {key: values for key, values in columns.items() if key != "prompt"}
    return {"prompts": columns["prompt"], "completions": completions, **others}


def repeat(batch: Columns, times: int) -> Columns:
    """Each row ``times`` times in a row.

    Example:
        >>> repeat({"prompt": ["a", "b"]}, 2)
        {'prompt': ['a', 'a', 'b', 'b']}
    """
    return {key: [value for value in values for _ in range(times)] for key, values in batch.items()}


def decode(tokenizer: PreTrainedTokenizerBase, sequences: Sequences) -> list[str]:
    """The responses as texts, without special tokens."""
    real = [ids[mask] for ids, mask in zip(sequences.response_ids, sequences.response_mask, strict=True)]
    return tokenizer.batch_decode(real, skip_special_tokens=True)
