"""Prompts and responses as padded tensors: the one layout that generation, training and scoring share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

Self = TypeVar("Self", bound="Sequences")

Axis = Literal["prompt", "token", "episode"]


def axis_field(axis: Axis, **options: Any) -> Any:
    """A dataclass field with one entry an episode: [n, s] per prompt token, [n, t] per response token, or [n]."""
    return dataclasses.field(metadata={"axis": axis}, **options)


@dataclass(frozen=True, eq=False)
class Sequences:
    """``n`` prompts, each followed by its response. Prompts are padded on the left and responses on the right, so every
    response starts in the same column. Masks say what is padding; token ids never do (pad may equal eos).

    Args:
        prompt_ids: [n, s] token ids.
        prompt_mask: [n, s] bool, True on prompt tokens.
        response_ids: [n, t] token ids, the end-of-sequence token included.
        response_mask: [n, t] bool, True on response tokens.
        finished: [n] bool, whether the response ended by itself; None where nobody has said so.
        engine_logprobs: [n, t] log-probabilities of the response tokens as the engine drew them, by its own weights and
            kernels and at the temperature of the draw; None where it tells none.
    """

    prompt_ids: Tensor = axis_field("prompt")
    prompt_mask: Tensor = axis_field("prompt")
    response_ids: Tensor = axis_field("token")
    response_mask: Tensor = axis_field("token")
    finished: Tensor | None = axis_field("episode", default=None, kw_only=True)
    engine_logprobs: Tensor | None = axis_field("token", default=None, kw_only=True)

    def __len__(self) -> int:
        return self.prompt_ids.shape[0]

    @property
    def input_ids(self) -> Tensor:
        """[n, s + t]"""
        return torch.cat([self.prompt_ids, self.response_ids], dim=1)

    @property
    def attention_mask(self) -> Tensor:
        """[n, s + t] integers, as Hugging Face models take them."""
        return torch.cat([self.prompt_mask, self.response_mask], dim=1).long()

    @property
    def position_ids(self) -> Tensor:
        """[n, s + t], counted from each row's first real token. Always passed on: models that make their own
        broadcast one
        row over the batch, which hides per-episode gradients of position embeddings."""
        return (self.attention_mask.cumsum(1) - 1).clamp(min=0)

    @property
    def lengths(self) -> Tensor:
        """[n] response tokens a row."""
        return self.response_mask.sum(1)

    def to(self: Self, device: torch.device | str) -> Self:
        """The same sequences on another device."""
        return self._replace(lambda name, value: value.to(device) if isinstance(value, Tensor) else value)

    def rows(self: Self, index: Tensor) -> Self:
        """The rows that ``index`` ([m] integers or [n] bool) picks."""
        index = index.to(self.prompt_ids.device)
        places = index.nonzero().flatten().tolist() if index.dtype == torch.bool else index.tolist()
        return self._replace(
            lambda name, value: value[index] if isinstance(value, Tensor) else [value[i] for i in places]
        )

    def trim(self: Self) -> Self:
        """Without the columns that are padding in every row; what a micro-batch saves by holding short episodes."""
        if len(self) == 0:
            return self
        start = self.prompt_ids.shape[1] - int(self.prompt_mask.sum(1).max())
        stop = int(self.lengths.max())
        cut = {"prompt": slice(start, None), "token": slice(None, stop)}
        axes = {field.name: field.metadata.get("axis", "") for field in dataclasses.fields(self)}
        return self._replace(lambda name, value: value[:, cut[axes[name]]] if axes[name] in cut else value)

    def chunks(self: Self, size: int, tokens: float | None = None) -> list[Self]:
        """Micro-batches, each trimmed; their rows are those of :meth:`places`."""
        return self.parts(size, tokens)[0]

    def parts(self: Self, size: int, tokens: float | None = None) -> tuple[list[Self], Tensor]:
        """The same, and [n] where each row is found among the micro-batches' results, put one after another."""
        places = self.places(size, tokens)
        order = torch.cat([torch.empty(0, dtype=torch.long), *places]).argsort()
        return [self.rows(index).trim() for index in places], order

    def places(self, size: int, tokens: float | None = None) -> list[Tensor]:
        """Row numbers of each micro-batch: at most ``size`` rows as they come or, within a budget of ``tokens``, from
        the longest to the shortest."""
        if tokens is not None:
            return within_budget(self.prompt_mask.sum(1), self.lengths, size, tokens)
        return [index for index in torch.arange(len(self)).split(size) if len(index)]

    def _replace(self: Self, change: Callable[[str, Any], Any]) -> Self:
        """Apply ``change(name, value)`` to every field that holds something for each row."""
        fields = (field for field in dataclasses.fields(self) if field.metadata.get("axis"))
        values = {field.name: getattr(self, field.name) for field in fields}
        return dataclasses.replace(
            self, **{name: change(name, value) for name, value in values.items() if value is not None}
        )


def within_budget(prompts: Tensor, responses: Tensor, size: int, tokens: float) -> list[Tensor]:
    """Rows of similar length together, as many as a budget of tokens, padding included, allows.

    Args:
        prompts, responses: [n] tokens of each row's two sides, which are padded each to the longest of its batch.
        size: rows in a batch, at most.
        tokens: (longest prompt + longest response) * rows of a batch, at most; a row that is longer goes alone.

    Returns:
        Row numbers of each batch, the longest first: what does not fit into memory shows at once.

    Example:
        >>> within_budget(torch.tensor([2, 2, 2, 4]), torch.tensor([1, 8, 2, 6]), size=9, tokens=24)
        [tensor([1, 3]), tensor([2, 0])]
    """
    batches: list[list[int]] = []
    longest = (0, 0)
    sides = list(zip(prompts.tolist(), responses.tolist(), strict=True))
    for row in sorted(range(len(sides)), key=lambda row: sum(sides[row]), reverse=True):
        wider = (max(longest[0], sides[row][0]), max(longest[1], sides[row][1]))
        if batches and len(batches[-1]) < size and sum(wider) * (len(batches[-1]) + 1) <= tokens:
            batches[-1].append(row)
            longest = wider
        else:
            batches.append([row])
            longest = sides[row]
    return [torch.tensor(batch) for batch in batches]


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Rows of token ids as ([n, s] ids, [n, s] bool mask), padded on the left.

    Example:
        >>> pad_left([[5], [6, 7]], pad=0)
        (tensor([[0, 5],
                [6, 7]]), tensor([[False,  True],
                [ True,  True]]))
    """
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return ids, mask
