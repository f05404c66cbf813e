"""Keys and values of a fixed length, whose rows can be picked."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import StaticCache


def empty_cache(policy: Any, length: int) -> StaticCache:
    """A cache for ``length`` tokens, whose tensors are made at the first reading.

    Under autocast rotated keys are in float32 and values in half precision, which a static layer cannot hold; attention
    takes both in half precision, and so they are kept.
    """
    cache = StaticCache(config=policy.config, max_cache_len=length)
    device = policy.device.type
    if torch.is_autocast_enabled(device):
        for layer in _layers(cache):
            kind: Any = type(layer)
            layer.__class__ = _casting(kind)
            layer.kept_as = torch.get_autocast_dtype(device)
    return cache


def rows_of_cache(cache: StaticCache, place: Tensor) -> StaticCache:
    """Another cache, of the rows at ``place`` ([m]), in tensors of its own that a CUDA graph finds by their address."""
    picked = copy.copy(cache)
    picked.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in _layers(picked):
        layer.keys, layer.values = layer.keys.index_select(0, place), layer.values.index_select(0, place)
        layer.cumulative_length = layer.cumulative_length.clone()
        layer.batch_size = layer.max_batch_size = len(place)
        for tensor in (layer.keys, layer.values, layer.cumulative_length):
            torch._dynamo.mark_static_address(tensor)
    return picked


def sizes_of_cache(cache: StaticCache) -> tuple[Any, ...]:
    """What two caches must have in common for one to take the place of the other."""
    return tuple((layer.keys.shape, layer.values.shape, layer.keys.dtype) for layer in _layers(cache))


def copy_cache(source: StaticCache, target: StaticCache) -> None:
    """All that a cache holds into another one's tensors, of the same sizes."""
    for old, new in zip(_layers(target), _layers(source), strict=True):
        for name, value in vars(new).items():
            if isinstance(value, Tensor):
                getattr(old, name).copy_(value)
            else:
                setattr(old, name, value)


def _layers(cache: Any) -> list[Any]:
    return cache.layers


@lru_cache
def _casting(layer: Any) -> Any:
    class Casting(layer):
        kept_as: torch.dtype

        def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            return super().update(keys.to(self.kept_as), values.to(self.kept_as), *args, **kwargs)

    return Casting
