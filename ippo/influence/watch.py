"""Hooks that hand over each layer's inputs and output gradient, in one forward and one backward for activations only.

While a module is watched its parameters are frozen, so the backward forms no weight gradient; and nothing slips by: a
trainable parameter that is used outside its own layer, or a layer whose rows are not the episodes, is refused by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ippo.errors import UsageError
from ippo.influence.parameters import check_losses, trainable
from ippo.influence.sites import Arguments, Site, find_sites, why_not

OnGradient = Callable[[Site, Arguments, Tensor], None]
"""Called once a layer and use, from the last to the first, with the layer's inputs and its output's gradient."""


_HARMLESS = (int, float, str, type(None), torch.Size, torch.dtype, torch.device, torch.layout)
"""What may be read of a parameter anywhere: its shape, its type, its place."""


class UncoveredLayerError(UsageError):
    """A layer that hooks cannot tell apart by episode."""

    def __init__(self, layer: str, reason: str) -> None:
        remedy = "use backend='jvp' or 'loop' of ExactScorer"
        super().__init__("backend", "ghost", f"it cannot cover {layer!r}: {reason}; {remedy}")
        self.layer, self.reason = layer, reason


def watched_backward(module: nn.Module, losses: Callable[[], Tensor], on_gradient: OnGradient) -> Tensor:
    """One forward and one backward of ``losses().sum()`` that shows ``on_gradient`` every layer; no ``.grad`` changes.

    Args:
        module: its trainable parameters' layers are watched.
        losses: runs the forward; returns [n], one loss an episode.
        on_gradient: see :data:`OnGradient`.

    Returns:
        [n] the losses, detached.

    Raises:
        UncoveredLayerError: if a trainable parameter acts where its layer's hooks cannot see it, by episode.
    """
    watch = _Watch(module, on_gradient)
    with torch.enable_grad(), _frozen(module), watch.hooks():
        with _OnlyAtHome(watch):
            try:
                values = losses()
            except RuntimeError as error:
                if "_Tap" not in str(error):
                    raise
                raise UncoveredLayerError("a layer", "its output is written over in place") from error
        check_losses(values)
        watch.check_rows(len(values))
        if values.requires_grad:  # else no loss depends on a trainable parameter
            torch.autograd.grad(values.sum(), watch.anchor, allow_unused=True)
    return values.detach()


class _Watch:
    """The state of one watched pass: which layers are running, and what came out of them."""

    def __init__(self, module: nn.Module, on_gradient: OnGradient) -> None:
        self.sites, self.on_gradient = find_sites(module), on_gradient
        names = trainable(module)
        self.names = {id(parameter): name for name, parameter in names.items()}
        self.anchor = torch.zeros((), device=next(module.parameters()).device, requires_grad=True)
        self.homes: dict[str, list[str]] = {name: [] for name in names}
        for site in self.sites:
            for name in site.names.values():
                self.homes[name].append(site.name)
        self.running: Counter[str] = Counter()
        self.outputs: list[tuple[Site, torch.Size]] = []
        self.paused = False

    @contextmanager
    def hooks(self) -> Iterator[None]:
        handles = []
        for site in self.sites:
            before, after = partial(self._before, site), partial(self._after, site)
            handles += [
                site.module.register_forward_pre_hook(before),
                site.module.register_forward_hook(after, prepend=True, with_kwargs=True),  # what forward returned
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def is_home(self, parameter: Tensor) -> bool:
        """Whether a watched parameter is used inside a running layer that owns it."""
        name = self.names[id(parameter)]
        return any(self.running[home] for home in self.homes[name])

    def check_rows(self, n: int) -> None:
        axes = max((len(shape) for _, shape in self.outputs), default=0)
        for site, shape in self.outputs:
            if reason := why_not(site, shape, n, axes):
                raise UncoveredLayerError(site.name, reason)

    def _before(self, site: Site, *_: Any) -> None:
        self.running[site.name] += not self.paused

    def _after(self, site: Site, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Tap the output: keep the inputs until its gradient arrives, then hand over both."""
        if self.paused:
            return None
        self.running[site.name] -= 1
        if not torch.is_grad_enabled():
            return None
        if not isinstance(output, Tensor):
            raise UncoveredLayerError(site.name, f"it returns a {type(output).__name__}, not a tensor")
        self.outputs.append((site, output.shape))
        leaves, structure = pytree.tree_flatten((args, kwargs))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        plain = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]

        def receive(kept: tuple[Tensor, ...], gradient: Tensor) -> None:
            restored = list(plain)
            for place, tensor in zip(places, kept, strict=True):
                restored[place] = tensor
            self.paused = True  # the layer may run again, alone, for its formula: that is not another use of it
            try:
                self.on_gradient(site, pytree.tree_unflatten(restored, structure), gradient)
            finally:
                self.paused = False

        return _Tap.apply(output, self.anchor, receive, *(leaves[place].detach() for place in places))


class _Tap(torch.autograd.Function):
    """The identity, which sees the gradient pass by. What it keeps is saved as autograd saves, so that checkpointing
    can drop and recompute it."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor, receive: Any, *kept: Tensor) -> Tensor:
        ctx.receive = receive
        ctx.save_for_backward(*kept)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        with torch.no_grad():
            ctx.receive(ctx.saved_tensors, gradient)
        return gradient, *(None for _ in ctx.needs_input_grad[1:])


class _OnlyAtHome(TorchFunctionMode):
    """Refuses a trainable parameter that is read outside the forward of a layer that owns it."""

    def __init__(self, watch: _Watch) -> None:
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, _HARMLESS) and torch.is_grad_enabled():  # a value without a gradient is a constant
            for value in (*args, *kwargs.values()) if kwargs else args:
                for one in value if type(value) in (tuple, list) else (value,):
                    if id(one) in self.watch.names and not self.watch.is_home(one):
                        name = self.watch.names[id(one)]
                        raise UncoveredLayerError(name, "it is used outside the forward of the layer that owns it")
        return result


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    parameters = list(trainable(module).values())
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
