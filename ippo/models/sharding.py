"""Policy, critic and reference in parts (FSDP2): each rank keeps a share of every parameter, and a layer is whole while
it runs.

No rank need hold such models whole: they are built without numbers (:func:`without_numbers`), and each rank's share
comes, tensor by tensor, from the one policy that the first rank has in its machine's memory.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ippo.distributed import own_part, world_size
from ippo.errors import require
from ippo.influence.sharding import at_rest
from ippo.models.reading import does_without_mask, is_right
from ippo.models.trunk import runs_apart, trunk_of
from ippo.rollout.sharded import in_parts, inside
from ippo.rollout.soundness import few_tokens, minds_left_padding

Model = TypeVar("Model", bound=nn.Module)
Built = TypeVar("Built", bound=nn.Module)


def shard(models: nn.Module, mesh: DeviceMesh) -> None:
    """Spread policy, critic and reference over the ranks, layer by layer; doing it twice changes nothing.

    Args:
        models: a layout, or whatever has a ``policy``, and may have a ``value`` and a ``reference``; made by
            :func:`to_be_sharded`, or whole on every rank.
        mesh: the ranks, of one dimension.

    Raises:
        UsageError: if two layers share a parameter.
    """
    parts = [part for name in ("policy", "value", "reference") if (part := getattr(models, name, None)) is not None]
    if any(map(in_parts, parts)):
        return
    was = {name: id(one) for name, one in tensors_of(models).items()}
    for part in parts:
        layers = layers_of(part)
        _require_apart(part, layers)
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(part, mesh=mesh)
    _fill(models, was, getattr(models, "start", None) or {}, torch.device(mesh.device_type))
    models.start = None  # type: ignore[assignment]
    policy: Any = models.policy
    policy._is_fsdp_managed_module = True  # generate waits for the rank with the longest response
    _try_in_step(models)


def ranks_of(mesh: DeviceMesh) -> DeviceMesh:
    """The one dimension of a mesh that shards, as Lightning's ``ModelParallelStrategy`` makes it.

    Raises:
        UsageError: if there is another that is not trivial.
    """
    others = [name for name in mesh.mesh_dim_names or () if name != "data_parallel" and mesh[name].size() > 1]
    remedy = "parts of a layer on several ranks are not tried: use fsdp2, or tensor_parallel_size=1"
    require(not others, "trainer.strategy", f"with {others}", remedy)
    return mesh["data_parallel"]


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers that are gathered one at a time; a model without such is gathered whole, which is said."""
    found: list[nn.Module] = []
    inner: set[nn.Module] = set()
    for part in model.modules():
        if isinstance(part, GradientCheckpointingLayer) and part not in inner:
            found.append(part)
            inner.update(part.modules())
    if not found and sum(parameter.numel() for parameter in model.parameters()) > 2**20:
        rank_zero_warn(
            f"{type(model).__name__}: its layers are not known as such, so that all of it is gathered at once"
        )
    return found


def without_numbers(model: Model) -> Model:
    """A copy with every hook and setting, and with shapes and types in the place of numbers; it takes no memory."""
    memo: dict[int, Any] = {id(one): one.to("meta") for one in model.buffers()}
    for one in model.parameters():
        memo[id(one)] = nn.Parameter(one.detach().to("meta"), requires_grad=one.requires_grad)
    return copy.deepcopy(model, memo)


def is_without_numbers(model: nn.Module) -> bool:
    """Whether it has shapes alone."""
    return any(parameter.is_meta for parameter in model.parameters())


def tensors_of(model: nn.Module, name: str = "") -> dict[str, Tensor]:
    """Parameters and buffers by every name that they have; ``name`` is the model's own, in front of them."""
    own = chain(model.named_parameters(name, remove_duplicate=False), model.named_buffers(name, remove_duplicate=False))
    return dict(own)


def to_be_sharded(build: Callable[[Any], Built], policy: PreTrainedModel, one_base: bool) -> Built:
    """Models without numbers, which on the first rank know what they start from, until :func:`shard`.

    Args:
        build: makes them of a policy.
        policy: whole on the first rank, without numbers on the others.
        one_base: whether they share its tensors (the layout ``lora``), so that making them whole takes no further
            memory; else policy, reference and critic's trunk start as the policy, and only it is held.
    """
    start: dict[str, Tensor] = {}
    if not is_without_numbers(policy) and one_base:
        with isolate_rng():  # each rank draws the adapters; the first rank's are everyone's
            start = tensors_of(build(policy))
    elif not is_without_numbers(policy):
        copies = {"policy": policy, "reference": policy, "value.trunk": trunk_of(policy)}
        start = {name: one for place, model in copies.items() for name, one in tensors_of(model, place).items()}
    models: Any = build(without_numbers(policy))
    models.start = start
    return models


def _require_apart(part: nn.Module, layers: list[nn.Module]) -> None:
    """Refuse a parameter of two layers, or of a layer and what is around them: gathered by one, the other lacks it."""
    inside_layers = Counter(id(one) for layer in layers for one in layer.parameters())
    of_layers = {module for layer in layers for module in layer.modules()}
    around = {id(one) for module in part.modules() if module not in of_layers for one in module.parameters(False)}
    shared = [name for name, one in part.named_parameters() if inside_layers[id(one)] > (id(one) not in around)]
    remedy = "layers that share a parameter cannot be gathered apart: train with --trainer.strategy ddp"
    require(not shared, "model", f"{type(part).__name__}, which shares {shared[:1]}", remedy)


def _fill(models: nn.Module, was: Mapping[str, int], start: Mapping[str, Tensor], device: torch.device) -> None:
    """Give every tensor without numbers those of the first rank; each rank sees one whole tensor at a time.

    What was one tensor before it was sharded stays one: tied weights, and the frozen base under several adapters.
    """
    filled: dict[tuple[str, int], Tensor] = {}
    for name, one in tensors_of(models).items():
        # Two kinds of keys: what was before may be gone, and its number another's.
        key = ("is", id(one)) if one.requires_grad else ("was", was[name])
        if key not in filled:
            filled[key] = _from_first_rank(one, start.get(name), device) if own_part(one).is_meta else one
        path, _, leaf = name.rpartition(".")
        module = models.get_submodule(path)
        held = module._parameters if leaf in module._parameters else module._buffers
        held[leaf] = filled[key]  # type: ignore[assignment]


def _from_first_rank(empty: Tensor, source: Tensor | None, device: torch.device) -> Tensor:
    value = torch.empty(empty.shape, dtype=empty.dtype, device=device)
    if source is not None:
        value.copy_(source.detach())
    if world_size() > 1:
        dist.broadcast(value, src=0)
    if isinstance(empty, DTensor):
        value = distribute_tensor(value, empty.device_mesh, empty.placements, src_data_rank=None)
    return nn.Parameter(value, empty.requires_grad) if isinstance(empty, nn.Parameter) else value


def _try_in_step(models: nn.Module) -> None:
    """Find out now, on all ranks together, what is else found out when a rank first needs it: each trial is a call."""
    policy, value, reference = (getattr(models, name, None) for name in ("policy", "value", "reference"))
    with torch.no_grad():
        for model in filter(None, (policy, reference)):
            ids, mask = few_tokens(model)
            _try_reading(model)
            runs_apart(model, {"input_ids": ids, "attention_mask": mask, "use_cache": False})
        if value is not None:
            holder, trunk = (value, value.trunk) if hasattr(value, "trunk") else (policy, trunk_of(policy))
            inside(holder, _try_reading, trunk)
    at_rest(models)


def _try_reading(model: Any) -> None:
    minds_left_padding(model)
    if is_right(model, next(model.parameters()).device):
        does_without_mask(model)
