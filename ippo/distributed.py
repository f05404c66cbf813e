"""Sums, maxima and rows over all processes of a run, what keeps the ranks in step, and tensors that they hold in parts;
on one process each returns its argument.

All but :func:`world_size`, :func:`rank`, :func:`seed_each_rank`, :func:`no_sync`, :func:`is_sharded`, :func:`own_part`
and :func:`placed_like` wait for the other ranks: every rank must call them, in the same order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torchmetrics.utilities.distributed import gather_all_tensors

T = TypeVar("T")


def world_size() -> int:
    """Number of processes, 1 where nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def total(value: Tensor) -> Tensor:
    """Elementwise sum over the ranks."""
    return _reduced(value, dist.ReduceOp.SUM) if world_size() > 1 else value


def totals(values: Mapping[str, float], device: torch.device | str) -> dict[str, float]:
    """Sum over the ranks of each number; all ranks must hold the same names."""
    if world_size() == 1:
        return dict(values)
    sums = total(torch.tensor([values[name] for name in sorted(values)], device=device))
    return dict(zip(sorted(values), sums.tolist(), strict=True))


def total_of(value: int, device: torch.device | str) -> int:
    """Sum over the ranks of a plain number; ``device`` is one that the process group can reduce on."""
    return int(total(torch.tensor(value, device=device))) if world_size() > 1 else value


def largest(value: int, device: torch.device | str) -> int:
    """Maximum over the ranks of a plain number."""
    return int(_reduced(torch.tensor(value, device=device), dist.ReduceOp.MAX)) if world_size() > 1 else value


def extremes(value: int, device: torch.device | str) -> tuple[int, int]:
    """Minimum and maximum over the ranks of a plain number."""
    if world_size() == 1:
        return value, value
    least, most = _reduced(torch.tensor([-value, value], device=device), dist.ReduceOp.MAX).tolist()
    return -least, most


def everywhere(flags: Sequence[bool], device: torch.device | str) -> list[bool]:
    """Of each, whether it holds on every rank."""
    if world_size() == 1:
        return list(flags)
    return _reduced(torch.tensor(flags, dtype=torch.int, device=device), dist.ReduceOp.MIN).bool().tolist()


def gather(value: Tensor) -> tuple[Tensor, slice]:
    """All ranks' rows one after another, and where this rank's own are; ranks may hold different numbers of rows."""
    if world_size() == 1:
        return value, slice(0, len(value))
    parts = gather_all_tensors(value.detach())
    start = sum(map(len, parts[: rank()]))
    return torch.cat(parts), slice(start, start + len(value))


def alike_on_all_ranks(values: Tensor) -> bool:
    """Whether every rank passes the same [n] numbers, up to rounding."""
    rows, own = gather(values)
    alike = len(rows) == world_size() * len(values) and bool(rows[: len(values)].isclose(rows[own], rtol=1e-4).all())
    return total_of(int(alike), values.device) == world_size()


def gather_texts(texts: Sequence[str], device: torch.device | str) -> list[str]:
    """All ranks' texts one after another, in the order of :func:`gather`."""
    if world_size() == 1:
        return list(texts)
    # As bytes in tensors: `all_gather_object` would unpickle what other ranks send.
    encoded = [text.encode() for text in texts]
    sizes, _ = gather(torch.tensor([len(text) for text in encoded], dtype=torch.long, device=device))
    letters, _ = gather(torch.tensor(list(b"".join(encoded)), dtype=torch.uint8, device=device))
    return [bytes(part.tolist()).decode() for part in letters.cpu().split(sizes.tolist())]


def from_first(value: Tensor) -> Tensor:
    """What rank 0 passes, on every rank; for decisions that are drawn at random. Of the same shape on all of them."""
    if world_size() == 1:
        return value
    value = value.clone()
    dist.broadcast(value, src=0)
    return value


def as_many_on_all_ranks(parts: Sequence[T], filling: Callable[[], T], device: torch.device | str) -> list[T]:
    """The parts, filled up where another rank has more: a rank that waits for another's backward hangs.

    Args:
        parts: this rank's minibatches, or the micro-batches of one.
        filling: makes a part that changes nothing.
        device: one that the process group can reduce on.
    """
    missing = largest(len(parts), device) - len(parts)
    return [*parts, *[filling()] * missing] if missing else list(parts)


def no_sync(model: Any) -> AbstractContextManager[None]:
    """The context of a backward whose gradients stay on their rank until a later one of the step.

    Args:
        model: the module, as the strategy has wrapped it.
    """
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def seed_each_rank() -> None:
    """Ranks that were seeded alike draw differently from here on, each from a seed of its own; rank 0 is left alone."""
    if rank():
        seed = (torch.initial_seed() + 1_000_003 * rank()) % 2**32
        for start in (torch.manual_seed, numpy.random.seed, random.seed):
            start(seed)


def is_sharded(tensor: Tensor) -> bool:
    """Whether FSDP of either generation, tensor parallelism or DeepSpeed's third stage has spread it over the ranks."""
    return isinstance(tensor, DTensor) or getattr(tensor, "_fsdp_flattened", False) or hasattr(tensor, "ds_id")


def whole(tensor: Tensor) -> Tensor:
    """All ranks' parts of a sharded tensor, put together; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor where another one is, in its precision; of one that is sharded, this rank's part."""
    tensor = tensor.to(device=like.device, dtype=like.dtype)
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def for_checkpoint(tensor: Tensor) -> Tensor:
    """A tensor as a checkpoint holds it, which is the first rank's to write: one that is sharded is put together there,
    in the CPU's memory, and empty on the others. :func:`placed_like` takes it up again, on as many ranks as there are
    then."""
    if not isinstance(tensor, DTensor):
        return tensor
    put_together = whole(tensor)
    return put_together.cpu() if rank() == 0 else put_together.new_empty(0, device="cpu")


def _reduced(value: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    value = value.clone()
    dist.all_reduce(value, operation)
    return value
