"""Models that FSDP2 has spread over ranks: a call gathers what it needs, and every rank must make it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from ippo.distributed import as_many_on_all_ranks, rank, whole

T = TypeVar("T")


def in_parts(model: Any) -> bool:
    """Whether ranks hold parts of a model, so that each of its calls waits for theirs."""
    return isinstance(model, FSDPModule)


def inside(model: Any, run: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """``run(*args, **kwargs)``; where ranks hold parts of ``model``, within a call of it.

    Calling a part of such a model by itself, as its trunk, would find parameters that nobody has gathered: embeddings
    and last norm belong to no layer, and the model's own call gathers them.
    """
    if not in_parts(model):
        return run(*args, **kwargs)
    model.forward = lambda *args, **kwargs: run(*args, **kwargs)  # a module by itself would become a part
    try:
        return model(*args, **kwargs)
    finally:
        del model.forward  # the class's own again


def as_many_calls(model: Any, parts: Sequence[T], device: torch.device) -> list[T]:
    """The parts of a rank's work on ``model``; where ranks hold parts of it, the first once more for each that another
    rank has more, since every rank must call as often."""
    if not in_parts(model):
        return list(parts)
    return as_many_on_all_ranks(parts, lambda: parts[0], device)


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """``model.state_dict()``; of a model in parts see :func:`kept_by_first`. Tied weights stay one."""
    state = model.state_dict()
    if not in_parts(model):
        return state
    tied = {name: id(one) for name, one in model.named_parameters(remove_duplicate=False)}
    firsts = {tied.get(name, name): name for name in reversed(state)}
    kept = kept_by_first((name, whole(state[name])) for name in reversed(firsts.values()))
    return {name: kept[firsts[tied.get(name, name)]] for name in state if kept}


def kept_by_first(gathered: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """What ranks gather together, one tensor at a time: in the memory of the first rank's machine, and nowhere else."""
    return {name: value.cpu() for name, value in gathered if rank() == 0}


def whole_copy(layer: T) -> T:
    """A layer of a model in parts, with all of its parameters."""
    own: Any = layer
    held = {id(one): nn.Parameter(whole(one.detach()), requires_grad=False) for one in own.parameters()}
    return copy.deepcopy(layer, held)
