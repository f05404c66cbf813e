"""Layers that keep their inputs alone and run again in the backward pass, as gradient checkpointing asks for.

torch's own checkpointing hands its second run to no hook in an orderly way: it stops half way through a layer, and the
gradients flow through the first run. Here the first run keeps no graph, and the second one is differentiated by itself,
so that every hook and every gradient belong to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


class Pass(Protocol):
    """What is told which run it is."""

    def during(self, run: Literal["ahead", "again"]) -> AbstractContextManager[None]:
        """A context for the first run, without a graph, or for the second."""

    def owns(self, layer: nn.Module) -> bool:
        """Whether anything inside a layer is watched."""

    def begins_with(self, outputs: list[Tensor]) -> tuple[list[Tensor], Any]:
        """The tensors that the graph of ``outputs`` begins with, and more."""


def checkpointed_layers(module: nn.Module) -> list[nn.Module]:
    """The innermost layers that were told to checkpoint their activations, without those that own a parameter: hooks
    would have to see such a layer from outside and inside at once."""
    told = [part for part in module.modules() if getattr(part, "gradient_checkpointing", False)]
    inner = [part for part in told if not any(one is not part and one in set(told) for one in part.modules())]
    return [part for part in inner if not list(part.parameters(recurse=False))]


@contextmanager
def recomputing(layers: list[nn.Module], run: Pass) -> Iterator[None]:
    """While active, these layers run without a graph, and again when the gradient of what they returned is there."""
    own = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = _twice(layer, layer.forward, run)
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            if forward is None:
                del layer.forward  # the class's own again
            else:
                layer.forward = forward


def _twice(layer: nn.Module, forward: Callable[..., Any], run: Pass) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        once = _Call(forward, run, (args, kwargs))
        device = next((one.device.type for one in once.inputs), "cpu")
        once.autocast = torch.autocast(
            device, enabled=torch.is_autocast_enabled(device), dtype=torch.get_autocast_dtype(device)
        )
        # Where no input has a gradient, this gives what the layer returns one, if it is to be watched.
        handle = torch.zeros((), requires_grad=run.owns(layer))
        found = _Twice.apply(once, handle, *once.inputs)
        return once.restore(found)

    return call


class _Call:
    """One call of a layer: its tensors apart from the structure that they came in."""

    def __init__(self, forward: Callable[..., Any], run: Pass, arguments: Any) -> None:
        self.forward, self.run = forward, run
        self.leaves, self.structure = pytree.tree_flatten(arguments)
        self.inputs = [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]
        self.leaves = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in self.leaves]
        self.autocast: Any = None
        self.returned: tuple[list[Any], Any] = ([], None)

    def __call__(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        given = iter(tensors)
        leaves = [next(given) if leaf is None else leaf[0] for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.structure)
        found, structure = pytree.tree_flatten(self.forward(*args, **kwargs))
        self.returned = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in found], structure
        return tuple(leaf for leaf in found if isinstance(leaf, Tensor))

    def restore(self, tensors: tuple[Tensor, ...]) -> Any:
        """What the layer returned."""
        given = iter(tensors)
        leaves, structure = self.returned
        return pytree.tree_unflatten([next(given) if leaf is None else leaf[0] for leaf in leaves], structure)


class _Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, handle: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        with call.run.during("ahead"):
            return call(inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        needed = ctx.needs_input_grad[2:]
        inputs = [one.detach().requires_grad_(need) for one, need in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad(), call.autocast, call.run.during("again"):
            outputs = call(tuple(inputs))
        pairs = [
            (output, gradient)
            for output, gradient in zip(outputs, gradients, strict=True)
            if gradient is not None and output.requires_grad
        ]
        found: dict[Tensor, Tensor | None] = {}
        if pairs:
            ends, starts = (list(side) for side in zip(*pairs, strict=True))
            leaves = call.run.begins_with(ends)[0]
            found = dict(zip(leaves, torch.autograd.grad(ends, leaves, starts, allow_unused=True), strict=True))
        return (None, torch.zeros(()), *(found.get(one) for one in inputs))
