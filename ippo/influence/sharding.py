"""Parameters that FSDP2 holds in parts: which of them can be scored, and how they are found between two passes.

While a part of the module runs, FSDP2 puts whole parameters in the place of its shards, and takes them away afterwards:
nothing here or above keeps a parameter by its identity over a pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ippo.distributed import is_sharded, world_size
from ippo.errors import require

_REMEDY = (
    "scores go with FSDP2 alone, all trainable parameters over all ranks: use ModelParallelStrategy and fully_shard, "
    "or train with strategy=ddp"
)


def is_spread(parameters: Mapping[str, Tensor]) -> bool:
    """Whether ranks hold parts of these parameters; then of all of them, see :func:`require_known_sharding`."""
    return isinstance(next(iter(parameters.values()), None), DTensor)


def require_known_sharding(parameters: Mapping[str, Tensor], module: nn.Module) -> None:
    """Refuse any sharding but FSDP2's along one axis over all ranks, whose gradients are means over them.

    Raises:
        UsageError: with the parameter's name.
    """
    sharded = {name: parameter for name, parameter in parameters.items() if is_sharded(parameter)}
    if not sharded:
        return
    units = gathering_parts(module)
    for name, parameter in parameters.items():
        require(name in sharded, "module", f"with sharded parameters and {name}, which is whole", _REMEDY)
        fits = isinstance(parameter, DTensor) and bool(units) and parameter.device_mesh.ndim == 1
        fits = fits and parameter.device_mesh.size() == world_size()  # type: ignore[attr-defined]
        require(fits, "module", f"with sharded {name}", _REMEDY)
    for unit in units:
        factor = _divide_factor(unit)
        remedy = "leave set_gradient_divide_factor out: the mean over the ranks is counted on"
        require(factor in (None, world_size()), "gradient_divide_factor", factor, remedy)


def gathering_parts(module: nn.Module) -> list[Any]:
    """The parts of a module that gather their parameters to run, from outside to inside: each a module, and an
    ``FSDPModule``."""
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def at_rest(module: nn.Module) -> None:
    """Let every part hold its shards, which the optimizer knows. After a pass without a backward the outermost one has
    whole parameters still, which are other objects."""
    for part in gathering_parts(module):
        part.reshard()


def wake(module: nn.Module) -> None:
    """Let FSDP2 make its plans, as it would at the first pass, before anything is frozen: where a whole part is frozen
    then, it forgets in which precision that part's gradients are reduced."""
    seen: set[nn.Module] = set()
    for part in gathering_parts(module):
        if part not in seen:  # the outermost ones, each of which plans for all inside
            seen.update(part.modules())
            part._get_fsdp_state()._lazy_init()


@contextmanager
def gathered_in_turn(module: nn.Module) -> Iterator[None]:
    """A backward in which each part is gathered when its turn comes. FSDP2 does it ahead, sooner or later by the number
    of passes that a rank cuts its batch into: what else is gathered in between would meet another rank's other tensor.
    """
    ahead = [part for part in gathering_parts(module) if not part._get_fsdp_state()._states_to_backward_prefetch]
    for part in ahead:
        part.set_modules_to_backward_prefetch([part])  # instead of the one before it
    try:
        yield
    finally:
        for part in ahead:
            part.set_modules_to_backward_prefetch([])


def unshard_for_backward(layer: nn.Module) -> None:
    """Gather a layer that is a part of its own before its backward, as FSDP2 does a moment later."""
    if isinstance(layer, FSDPModule):
        layer.unshard()


def _divide_factor(part: FSDPModule) -> float | None:
    """What its gradients are divided by; None for the number of ranks. FSDP2 tells it nowhere else."""
    state = part._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
    return next((getattr(group, "gradient_divide_factor", None) for group in groups if group is not None), None)
