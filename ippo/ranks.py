"""Sums, maxima and rows over all processes of a run; on one process each returns its argument."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes, 1 where nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def total(value: Tensor) -> Tensor:
    """Elementwise sum over the ranks."""
    return _reduced(value, dist.ReduceOp.SUM) if world_size() > 1 else value


def largest(value: int, device: torch.device | str) -> int:
    """Maximum over the ranks; ``device`` is one that the process group can reduce on."""
    return int(_reduced(torch.tensor(value, device=device), dist.ReduceOp.MAX)) if world_size() > 1 else value


def gather(value: Tensor) -> tuple[Tensor, slice]:
    """All ranks' rows one after another, and where this rank's own are; ranks may hold different numbers of rows."""
    if world_size() == 1:
        return value, slice(0, len(value))
    counts = [torch.zeros((), dtype=torch.long, device=value.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor(len(value), device=value.device))
    sizes = [int(count) for count in counts]
    padded = value.new_zeros((max(sizes), *value.shape[1:]))
    padded[: len(value)] = value
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    start = sum(sizes[: rank()])
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]), slice(start, start + len(value))


def _reduced(value: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    value = value.clone()
    dist.all_reduce(value, operation)
    return value
