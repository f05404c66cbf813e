"""The policy's weights as they are for a rollout: adapters added to them, and afterwards the kept ones again.

A pair of small products beside every layer doubles a decoding step. Adding an adapter to its weight and subtracting it
again leaves rounding behind, which a thousand rollouts add up in bfloat16. So the base weights stay where they are, a
layer without an adapter takes each adapted layer's place, and the copy is dropped afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ippo.distributed import is_sharded
from ippo.rollout.sharded import in_parts, whole_copy

_NAME = "default"


@torch.no_grad()
def merged_weights(adapted: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The name in the plain model, and the value, of every weight that an adapter changes, one at a time. The sum is
    taken in float32 and rounded once. Ranks that hold parts of them must all ask, and get them whole."""
    for name, layer in adapted.named_modules():
        if isinstance(layer, LoraLayer):
            yield f"{name}.weight", merged_weight(whole_copy(layer) if in_parts(adapted) else layer)


@torch.no_grad()
def merged_weight(layer: Any) -> Tensor:
    """A layer's base weight and its adapter's product, in the dtype of the base."""
    weight: Tensor = layer.get_base_layer().weight
    with torch.autocast(weight.device.type, enabled=False):  # it would round the product of the factors
        return (weight.float() + layer.get_delta_weight(_NAME)).to(weight.dtype)


class Merged:
    """Lets a policy run with its adapters merged.

    Args:
        keep: hold the merged copies between two uses, at the same addresses; costs their memory meanwhile.
        adapters: merge them; False leaves them apart.
        cast: under autocast, give float32 layers copies in its precision, too: what it would make at every use.
    """

    def __init__(self, keep: bool = False, adapters: bool = True, cast: bool = False) -> None:
        self.keep, self.adapters, self.cast = keep, adapters, cast
        self._copies: dict[str, nn.Module] = {}

    @contextmanager
    def __call__(self, policy: nn.Module) -> Iterator[None]:
        """While it lasts, each adapted layer of ``policy`` is a plain one with the merged weight. What the policy
        shares with critic and reference is not touched. Sharded parameters stay as they are, adapters apart."""
        device = next(policy.parameters()).device.type
        half = torch.get_autocast_dtype(device) if self.cast and torch.is_autocast_enabled(device) else None
        layers = [(name, layer) for name, layer in policy.named_modules() if self._changes(layer, half)]
        adapted = {f"{name}.base_layer" for name, layer in layers if isinstance(layer, LoraLayer)}
        layers = [(name, layer) for name, layer in layers if name not in adapted]
        if not layers or any(map(is_sharded, policy.parameters())):
            yield
            return
        parents = [policy.get_submodule(name.rpartition(".")[0]) for name, _ in layers]
        try:
            for parent, (name, layer) in zip(parents, layers, strict=True):
                setattr(parent, name.rpartition(".")[2], self._plain(name, layer, half))
            yield
        finally:
            for parent, (name, layer) in zip(parents, layers, strict=True):
                setattr(parent, name.rpartition(".")[2], layer)
            if not self.keep:
                self._copies.clear()

    def _changes(self, layer: nn.Module, half: torch.dtype | None) -> bool:
        if isinstance(layer, LoraLayer):
            return self.adapters
        return half is not None and type(layer) in (nn.Linear, Conv1D) and layer.weight.dtype == torch.float32

    @torch.no_grad()
    def _plain(self, name: str, layer: Any, half: torch.dtype | None) -> nn.Module:
        base = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
        new = {key: one for key, one in base._parameters.items() if one is not None}
        if isinstance(layer, LoraLayer):
            new["weight"] = merged_weight(layer)
        if half is not None and type(base) in (nn.Linear, Conv1D):
            new = {key: one.to(half) for key, one in new.items()}
        held: Any = self._copies.get(name)
        if held is None or not all(_alike(held._parameters[key], one) for key, one in new.items()):
            held = base.__class__.__new__(base.__class__)
            held.__dict__.update(base.__dict__)  # sizes and mode
            copies = {key: nn.Parameter(one.detach().clone(), requires_grad=False) for key, one in new.items()}
            held._parameters = {**base._parameters, **copies}
            self._copies[name] = held
        for key, one in new.items():
            held._parameters[key].copy_(one)
        return held


def _alike(held: Tensor, new: Tensor) -> bool:
    return (held.shape, held.dtype, held.device) == (new.shape, new.dtype, new.device)


@contextmanager
def cast_once(module: nn.Module, device: str) -> Iterator[None]:
    """Under autocast, let each weight be cast once instead of at every use, as long as this lasts.

    Lightning's mixed precision keeps no casts, because a weight may change between two uses; here none does. The cache
    takes weights that require a gradient only, so that all do meanwhile; without a graph that means nothing. It is
    emptied on both sides: an old cast would freeze training without an error.
    """
    if not torch.is_autocast_enabled(device) or torch.is_grad_enabled():
        yield
        return
    frozen = [one for one in module.parameters() if not one.requires_grad and one.dtype == torch.float32]
    torch.clear_autocast_cache()
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.autocast(device, torch.get_autocast_dtype(device), cache_enabled=True):
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        torch.clear_autocast_cache()
