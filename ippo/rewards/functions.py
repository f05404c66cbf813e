"""Reward functions as their authors write them, and what they return as numbers."""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from threading import Thread
from typing import Any

import torch
from torch import Tensor, nn

from ippo.errors import require
from ippo.modes import evaluation_mode

RewardFunction = Callable[..., Any]
"""``reward(prompts, completions, **columns)``, the signature known from TRL's GRPO; columns are the task's own.

Returns a number for each completion, or None where it does not apply to one, as a list, an array or a tensor of shape
[n] or [n, 1]; an ``async def`` is awaited."""

_CURVES = ("mean", "raw", "unfinished", "length", "zero_variance")  # of the module, beside those of the functions


@dataclass(frozen=True)
class Earned:
    """What reward functions gave to ``n`` completions.

    Args:
        total: the weighted sum of the functions that apply to each; None where none does.
        each: by the functions' names, what each gave; None where it does not apply.
    """

    total: list[float | None]
    each: dict[str, list[float | None]]

    @property
    def tensor(self) -> Tensor:
        """[n] float32; NaN where no function applies."""
        return torch.tensor([math.nan if one is None else one for one in self.total], dtype=torch.float32)

    @property
    def extras(self) -> dict[str, list[float | None]]:
        """As columns of episodes: the sum and, where there are several functions, what each gave."""
        several = self.each if len(self.each) > 1 else {}
        return {"reward_raw": self.total, **{f"reward_{name}": given for name, given in several.items()}}


class Rewards:
    """One reward function or several, called as one.

    It is no ``nn.Module`` on purpose: a reward model among the functions lands in no checkpoint of the module that is
    rewarded, and none of its parameters is trained. Such a model is called in evaluation mode and without gradients.
    ``async`` functions wait together.

    Args:
        functions: see :data:`RewardFunction`.
        weights: one factor a function; 1 each by default.

    Raises:
        UsageError: if there is no function, something that cannot be called, or not one finite weight for each.

    Example:
        >>> def right(prompts, completions, answer, **columns):
        ...     return [float(text == gold) for text, gold in zip(completions, answer)]
        >>> def short(prompts, completions, **columns):
        ...     return [None if not text else float(len(text) < 3) for text in completions]
        >>> earned = Rewards([right, short], [1.0, 0.5])(["p", "p"], ["36", ""], answer=["36", "4"])
        >>> earned.total, earned.each["short"]
        ([1.5, 0.0], [1.0, None])
    """

    def __init__(
        self, functions: RewardFunction | Sequence[RewardFunction], weights: Sequence[float] | None = None
    ) -> None:
        self.functions: list[Any] = list(functions) if isinstance(functions, (list, tuple)) else [functions]
        require(len(self.functions) > 0, "reward", functions, "give at least one function")
        for function in self.functions:
            remedy = "a reward is a function reward(prompts, completions, **columns); a model is called by one of yours"
            require(callable(function), "reward", function, remedy)
        self.weights = [1.0] * len(self.functions) if weights is None else list(weights)
        enough = len(self.weights) == len(self.functions) and all(map(math.isfinite, self.weights))
        require(enough, "reward_weights", weights, f"give one finite weight for each of {len(self.functions)} rewards")
        self.names = _names(self.functions)

    def to(self, device: torch.device | str) -> Rewards:
        """The same, the models among the functions on ``device``; what a function holds inside, it moves itself."""
        for model in self._models:
            model.to(device)
        return self

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]) -> Earned:
        """Reward each completion.

        Raises:
            UsageError: naming the function that returned something else than a number or None for each completion.
        """
        with ExitStack() as modes:
            for model in self._models:
                modes.enter_context(evaluation_mode(model))
            returned = [function(prompts=prompts, completions=completions, **columns) for function in self.functions]
            waiting = [place for place, one in enumerate(returned) if inspect.isawaitable(one)]
            for place, result in zip(waiting, _together([returned[place] for place in waiting]), strict=True):
                returned[place] = result
        each = [numbers(one, len(completions), name) for one, name in zip(returned, self.names, strict=True)]
        total: list[float | None] = []
        for row in zip(*each, strict=True):
            parts = [weight * one for weight, one in zip(self.weights, row, strict=True) if one is not None]
            total.append(sum(parts) if parts else None)
        return Earned(total, dict(zip(self.names, each, strict=True)))

    @property
    def _models(self) -> list[nn.Module]:
        return [function for function in self.functions if isinstance(function, nn.Module)]


def numbers(returned: Any, count: int, name: str) -> list[float | None]:
    """What a reward function returned, as one number a completion; None where it does not apply.

    Args:
        returned: a list, tuple, array or tensor of shape [n] or [n, 1].
        count: n, the completions.
        name: of the function, for the message.

    Raises:
        UsageError: if that is not a number or None for each completion. A single number is not spread over all: where
            one is right for every completion, the function can say so.

    Example:
        >>> numbers(torch.tensor([[1.0], [0.5]]), 2, "f"), numbers([True, None], 2, "f")
        ([1.0, 0.5], [1.0, None])
        >>> numbers([1.0], 2, "f")
        Traceback (most recent call last):
        ...
        ippo.errors.UsageError: reward f = '1 rewards': return one number for each of 2 completions, or None ...
    """
    remedy = f"return one number for each of {count} completions, or None where it does not apply to one"
    shape = getattr(returned, "shape", None)
    found = f"{type(returned).__name__} of shape {list(shape)}" if shape is not None else repr(returned)[:80]
    if shape is not None and hasattr(returned, "tolist"):
        returned = returned.reshape(-1).tolist() if tuple(shape[1:]) == (1,) else returned.tolist()
    is_row = isinstance(returned, Iterable) and not isinstance(returned, (str, bytes, Mapping, AbstractSet))
    require(is_row, f"reward {name}", found, remedy)
    given = list(returned)
    require(len(given) == count, f"reward {name}", f"{len(given)} rewards", remedy)
    values: list[float | None] = []
    for place, value in enumerate(given):
        number = _number(value)
        is_one = number is not None or value is None
        require(is_one, f"reward {name}", f"{repr(value)[:80]} for completion {place}", remedy)
        values.append(number)
    return values


def _number(value: Any) -> float | None:
    """A Python, numpy or torch number as a float; None for whatever is none, such as a text that spells one."""
    try:
        return float(value) if hasattr(value, "__float__") else None
    except (TypeError, ValueError, OverflowError, RuntimeError):  # an array of several; an integer of 400 digits
        return None


def _names(functions: Sequence[RewardFunction]) -> list[str]:
    """One name a function, fit for a curve's tag and unlike any other curve's."""
    names: list[str] = []
    for function in functions:
        while isinstance(function, partial):
            function = function.func
        written = re.sub(r"\W+", "_", getattr(function, "__name__", type(function).__name__)).strip("_") or "reward"
        taken, name, count = {*_CURVES, *names}, written, 2
        while name in taken:
            name, count = f"{written}_{count}", count + 1
        names.append(name)
    return names


def _together(waiting: Sequence[Awaitable[Any]]) -> list[Any]:
    """Results of coroutines that wait at the same time."""
    if not waiting:
        return []

    async def gathered() -> list[Any]:
        return await asyncio.gather(*waiting)

    future = asyncio.run_coroutine_threadsafe(gathered(), _loop(os.getpid()))
    try:
        return future.result()
    except BaseException:  # Ctrl-C, too: what still waits is given up
        future.cancel()
        raise


@cache
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """An event loop that runs in a thread of its own: a notebook's own one is no obstacle, and a client that a function
    opened in one rollout is still open in the next. Threads do not survive a fork, so each process has its own."""
    loop = asyncio.new_event_loop()
    Thread(target=loop.run_forever, name=f"rewards of process {process}", daemon=True).start()
    return loop
