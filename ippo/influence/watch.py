"""Hooks that hand over each layer's inputs and output gradient, in one forward and one backward for activations only.

While a module is watched a parameter needs no gradient inside the layers that own it, so the backward forms none; and
nothing slips by: outside of them it does, so that a use that hooks cannot see is in the graph of the losses, and is
refused by name, as a layer is whose rows are not the episodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ippo.errors import UsageError
from ippo.influence.parameters import check_losses, trainable
from ippo.influence.sites import Arguments, Site, find_sites, why_not

OnGradient = Callable[[Site, Arguments, Tensor], None]
"""Called once a layer and use, from the last to the first, with the layer's inputs and its output's gradient."""


class UncoveredLayerError(UsageError):
    """A layer that hooks cannot tell apart by episode."""

    def __init__(self, layer: str, reason: str) -> None:
        remedy = "use backend='jvp' or 'loop' of ExactScorer"
        super().__init__("backend", "ghost", f"it cannot cover {layer!r}: {reason}; {remedy}")
        self.layer, self.reason = layer, reason


def watched_backward(
    module: nn.Module, losses: Callable[[], Tensor], on_gradient: OnGradient, scales: Collection[str] = ()
) -> Tensor:
    """One forward and one backward of ``losses().sum()`` that shows ``on_gradient`` every layer; no ``.grad`` changes.

    Args:
        module: its trainable parameters' layers are watched.
        losses: runs the forward; returns [n], one loss an episode.
        on_gradient: see :data:`OnGradient`.
        scales: see :func:`find_sites`.

    Returns:
        [n] the losses, detached.

    Raises:
        UncoveredLayerError: if a trainable parameter acts where its layer's hooks cannot see it, by episode.
    """
    names = {parameter: name for name, parameter in trainable(module).items()}
    watch = _Watch(find_sites(module, scales), on_gradient)
    with torch.enable_grad(), watch.hooks():
        values = losses()
        check_losses(values)
        watch.check_rows(len(values))
        leaves = _leaves(values)
        for leaf in leaves:
            if leaf in names:
                raise UncoveredLayerError(names[leaf], "it is used outside the forward of the layer that owns it")
        if leaves:  # else no loss depends on a trainable parameter
            torch.autograd.grad(values.sum(), leaves)
    return values.detach()


class _Watch:
    """The state of one watched pass: which layers are running, and what came out of them."""

    def __init__(self, sites: list[Site], on_gradient: OnGradient) -> None:
        self.sites, self.on_gradient = sites, on_gradient
        self.running: Counter[nn.Parameter] = Counter()
        self.outputs: list[tuple[Site, torch.Size]] = []
        self.paused = False

    @contextmanager
    def hooks(self) -> Iterator[None]:
        handles = []
        for site in self.sites:
            own = [site.module.get_parameter(name) for name in site.names]
            before, after = partial(self._before, own), partial(self._after, site, own)
            handles += [
                site.module.register_forward_pre_hook(before),
                site.module.register_forward_hook(after, prepend=True, with_kwargs=True),  # what forward returned
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter in self.running:  # an error may have ended a layer half way
                parameter.requires_grad_(True)

    def check_rows(self, n: int) -> None:
        axes = max((len(shape) for _, shape in self.outputs), default=0)
        for site, shape in self.outputs:
            if reason := why_not(site, shape, n, axes):
                raise UncoveredLayerError(site.name, reason)

    def _before(self, own: list[nn.Parameter], *_: Any) -> None:
        if not self.paused:
            for parameter in own:
                self.running[parameter] += 1
                parameter.requires_grad_(False)

    def _after(self, site: Site, own: list[nn.Parameter], module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if self.paused:
            return None
        tapped = self._tap(site, (args, kwargs), output) if torch.is_grad_enabled() else None
        for parameter in own:
            self.running[parameter] -= 1
            parameter.requires_grad_(not self.running[parameter])
        return tapped

    def _tap(self, site: Site, arguments: Arguments, output: Any) -> Tensor:
        """Keep the inputs until the output's gradient arrives, then hand over both."""
        if not isinstance(output, Tensor):
            raise UncoveredLayerError(site.name, f"it returns a {type(output).__name__}, not a tensor")
        site.runs += 1
        self.outputs.append((site, output.shape))
        if not output.requires_grad:  # the first layer there: its output becomes a leaf of the graph
            output = output.detach().requires_grad_().clone()  # a leaf itself may not be written over
        leaves, structure = pytree.tree_flatten(arguments)
        kept = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        versions = _versions(kept)

        def receive(gradient: Tensor) -> None:
            if _versions(kept) != versions:
                raise UncoveredLayerError(site.name, "its input is written over in place")
            self.paused = True  # the layer may run again, alone, for its formula: that is not another use of it
            try:
                with torch.no_grad():
                    self.on_gradient(site, pytree.tree_unflatten(kept, structure), gradient)
            finally:
                self.paused = False
                kept.clear()

        output.register_hook(receive)
        return output


def _versions(leaves: list[Any]) -> list[int]:
    """How often each tensor has been written over."""
    return [leaf._version for leaf in leaves if isinstance(leaf, Tensor)]


def _leaves(values: Tensor) -> list[Tensor]:
    """The tensors that a graph begins with."""
    leaves: list[Tensor] = []
    nodes = [values.grad_fn]
    seen = {None}
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if not node.next_functions and isinstance(leaf, Tensor):
            leaves.append(leaf)
        nodes += [earlier for earlier, _ in node.next_functions]
    return leaves
