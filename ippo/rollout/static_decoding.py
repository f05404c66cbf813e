"""Decoding in tensors whose shapes stay, so that one step can be compiled and run again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StaticCache

from ippo.modes import uncompiled
from ippo.rollout.prefill import distinct
from ippo.rollout.static_cache import copy_cache, empty_cache, rows_of_cache, sizes_of_cache

LOOK_EVERY = 8
"""Steps between two looks at which rows have ended: a look waits for the GPU."""
FEWEST = 8
"""Rows of the smallest batch; a compiler makes a case of its own of a single row."""

Step = Callable[..., tuple[Tensor, Tensor]]


def step(
    policy: Any, cache: StaticCache, ids: Tensor, mask: Tensor, positions: Tensor, heat: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """One token for every row, and what it was drawn with. The function that is compiled.

    Dividing each probability by a number of the exponential distribution and taking the largest draws from the
    probabilities (the "exponential race"); divided by ones, the most likely token wins.

    Args:
        policy: a causal language model.
        cache: what it has read so far; goes on by one token.
        ids, positions: [n, 1] the last token of each row and its place in the text.
        mask: [n, l] integers, 1 on what may be read, including all that is yet to come.
        heat: the temperature, as a tensor: another one needs no other program.
        noise: [n, v].

    Returns:
        [n] tokens, and [n] their log-probabilities.
    """
    answer = policy(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    logprobs = (answer.logits[:, -1].float() / heat).log_softmax(-1)
    tokens = (logprobs.exp() / noise).argmax(-1)
    return tokens, logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def rows_of(count: int) -> int:
    """The size of the batch that ``count`` rows are put into: one of few, 8, 9, ..., 16, 18, ..., 32, 36, ..., so that
    at most an eighth of it is filling.

    Example:
        >>> [rows_of(count) for count in (1, 8, 17, 100, 256, 300)]
        [8, 8, 18, 104, 256, 320]
    """
    unit = max(1, 2 ** ((max(count, FEWEST) - 1).bit_length() - 4))
    return -(-max(count, FEWEST) // unit) * unit


def length_of(tokens: int) -> int:
    """The length of the cache that holds so many tokens: likewise, in multiples of 8, as masked attention kernels want.

    Example:
        >>> [length_of(tokens) for tokens in (40, 65, 356, 600)]
        [40, 72, 384, 640]
    """
    unit = max(8, 2 ** ((tokens - 1).bit_length() - 4))
    return -(-tokens // unit) * unit


@dataclass
class Rows:
    """The rows of a batch that are still being written.

    Args:
        cache: their keys and values.
        ids, positions: [m, 1] the last token and its place.
        mask: [m, l], see :func:`step`.
        owner: [m] which prompt each row answers; beyond the last prompt for filling.
    """

    cache: StaticCache
    ids: Tensor
    positions: Tensor
    mask: Tensor
    owner: Tensor


@dataclass(frozen=True)
class Decoder:
    """Answers a batch of prompts, a step at a time.

    Args:
        step: :func:`step`, compiled or not.
        ends: [e] the tokens that end a response.
        temperature: of the draw; 0 for the most likely tokens.
        progress: called after every step.
        kept: caches by their sizes, filled and used again where given: a CUDA graph knows its memory by its address.
    """

    step: Step
    ends: Tensor
    temperature: float
    progress: Callable[[], object] = lambda: None
    kept: dict[tuple[Any, ...], StaticCache] | None = None

    def answer(self, policy: Any, ids: Tensor, mask: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        """[n, t] tokens, and [n, t] their log-probabilities, until every row has ended or has ``tokens``; what follows
        a row's end is 0.

        Args:
            policy: see :func:`step`.
            ids, mask: [n, s] token ids padded on the left, and bool, True on the prompt; s is at least 2.
            tokens: of a response, at most.
        """
        count, last = ids.shape
        rows = self._begin(policy, ids, mask, last + tokens)
        drawn = ids.new_zeros(count + 1, tokens)  # the last row is for filling
        logprobs = torch.zeros(drawn.shape, dtype=torch.float32, device=ids.device)
        done = torch.zeros(count + 1, dtype=torch.bool, device=ids.device)
        done[-1] = True
        heat = torch.tensor(self.temperature or 1.0, device=ids.device)
        vocabulary = policy.get_output_embeddings().weight.shape[0]
        for place in range(tokens):
            noise = torch.ones(len(rows.owner), vocabulary, dtype=torch.float32, device=ids.device)
            if self.temperature:
                noise.exponential_()
            chosen, told = self.step(policy, rows.cache, rows.ids, rows.mask, rows.positions, heat, noise)
            chosen, told = chosen.clone(), told.clone()  # a CUDA graph writes into the same memory next time
            before = done[rows.owner]
            drawn[rows.owner, place] = chosen.masked_fill(before, 0)
            logprobs[rows.owner, place] = told.masked_fill(before, 0)
            done[rows.owner] = before | torch.isin(chosen, self.ends)
            self.progress()
            rows.ids.copy_(chosen.unsqueeze(1))
            rows.positions.add_(1)
            if (place + 1) % LOOK_EVERY == 0:
                left = (~done[rows.owner]).nonzero().flatten()
                if not len(left):
                    return drawn[:count, : place + 1], logprobs[:count, : place + 1]
                if 2 * rows_of(len(left)) <= len(rows.owner):
                    rows = self._fewer(rows, left, count)
        return drawn[:count], logprobs[:count]

    def _begin(self, policy: Any, ids: Tensor, mask: Tensor, longest: int) -> Rows:
        """Read all but the last token of each different prompt, once, and lay out the rows."""
        count, width = ids.shape
        length = length_of(longest)
        firsts, which = distinct(ids, mask)
        filling = rows_of(count) - count
        place = torch.cat([torch.arange(count, device=ids.device), ids.new_zeros(filling)])
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        cache = empty_cache(policy, length)
        with uncompiled():  # layers that are compiled for training would be anew, each for its place in the cache
            policy.base_model(  # without the head: nothing is drawn yet
                input_ids=ids[firsts, :-1],
                attention_mask=mask[firsts, :-1].long(),
                position_ids=positions[firsts, :-1],
                past_key_values=cache,
                use_cache=True,
            )
        ahead = torch.ones(len(place), length - width, dtype=torch.long, device=ids.device)
        return Rows(
            cache=self._picked(cache, which[place]),
            ids=ids[place, -1:].clone(),
            positions=positions[place, -1:].clone(),
            mask=torch.cat([mask[place].long(), ahead], 1),
            owner=torch.where(torch.arange(len(place), device=ids.device) < count, place, count),
        )

    def _fewer(self, rows: Rows, left: Tensor, nobody: int) -> Rows:
        """The rows that are left, and some filling."""
        size = rows_of(len(left))
        place = torch.cat([left, left[:1].expand(size - len(left))])
        owner = rows.owner[place]
        owner[len(left) :] = nobody
        cache = self._picked(rows.cache, place)
        return Rows(cache, rows.ids[place], rows.positions[place], rows.mask[place], owner)

    def _picked(self, cache: StaticCache, place: Tensor) -> StaticCache:
        """A cache of these rows of ``cache``."""
        picked = rows_of_cache(cache, place)
        if self.kept is None:
            return picked
        sizes = sizes_of_cache(picked)
        if sizes in self.kept:
            copy_cache(picked, self.kept[sizes])
        return self.kept.setdefault(sizes, picked)
