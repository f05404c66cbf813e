"""Ranks that hold different numbers of episodes, kept in step: a rank that waits for another's backward hangs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import lightning as L
import torch
from torch.nn.parallel import DistributedDataParallel

from ippo.distributed import largest
from ippo.errors import UsageError
from ippo.rollout.episodes import Episodes


def in_step(parts: Sequence[Episodes], buffer: Episodes) -> list[Episodes]:
    """The parts, filled up with weightless ones where another rank has more.

    Args:
        parts: this rank's minibatches, or the micro-batches of one.
        buffer: what they are parts of; one of its episodes, dropped ones included, becomes the filling.

    Raises:
        UsageError: if there is nothing to fill up with.
    """
    missing = largest(len(parts), buffer.rewards.device) - len(parts)
    return [*parts, *[weightless(buffer)] * missing] if missing else list(parts)


def weightless(buffer: Episodes) -> Episodes:
    """One episode that passes through the models and changes nothing, whatever was wrong with its numbers."""
    for part in (buffer, *buffer.dropped):
        if len(part):
            one = part.rows(torch.tensor([0])).trim()
            names = ("old_logprobs", "reference_logprobs", "values", "advantages", "returns", "weights")
            zeros: dict[str, Any] = {name: torch.zeros_like(getattr(one, name)) for name in names}
            return dataclasses.replace(one, **zeros)
    raise UsageError(
        "on_rollout_end", "no episode, nor a dropped one", "leave episodes out with Episodes.select, which keeps them"
    )


def backwards(trainer: L.Trainer, parts: Sequence[Episodes]) -> Iterator[tuple[Episodes, Any]]:
    """Each micro-batch with the context of its backward: DDP adds up the ranks' gradients once a step, at the last."""
    for place, part in enumerate(parts, start=1):
        yield part, local(trainer) if place < len(parts) else nullcontext()


def local(trainer: L.Trainer) -> Any:
    """The context of a backward whose gradients stay on their rank until a later one of the step."""
    model = trainer.strategy.model
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()
