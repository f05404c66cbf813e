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
from ippo.influence.layer_formulas import Arguments, LayerFormula, find_layer_formulas, why_not
from ippo.influence.parameters import check_losses

OnGradient = Callable[[LayerFormula, Arguments, Tensor], None]
"""Called once a layer and use, from the last to the first, with the layer's inputs and its output's gradient."""


class UncoveredLayerError(UsageError):
    """A layer that hooks cannot tell apart by episode."""

    def __init__(self, layer: str, reason: str) -> None:
        remedy = "use backend='jvp' or 'loop' of ExactScorer"
        super().__init__("backend", "ghost", f"it cannot cover {layer!r}: {reason}; {remedy}")
        self.layer, self.reason = layer, reason


def hooked_backward(
    module: nn.Module, losses: Callable[[], Tensor], on_gradient: OnGradient, scales: Collection[str] = ()
) -> Tensor:
    """One forward and one backward of ``losses().sum()`` that shows ``on_gradient`` every layer; no ``.grad`` changes.

    Args:
        module: its trainable parameters' layers are watched.
        losses: runs the forward; returns [n], one loss an episode.
        on_gradient: see :data:`OnGradient`.
        scales: see :func:`find_layer_formulas`.

    Returns:
        [n] the losses, detached.

    Raises:
        UncoveredLayerError: if a trainable parameter acts where its layer's hooks cannot see it, by episode.
    """
    watch = _HookedPass(find_layer_formulas(module, scales), on_gradient)
    with torch.enable_grad(), watch.hooks():
        values = losses()
        check_losses(values)
        watch.check_rows(len(values))
        leaves = _leaves(values)
        for leaf in leaves:
            if leaf in watch.names:
                raise UncoveredLayerError(watch.names[leaf], "it is used outside the forward of the layer that owns it")
        if leaves:  # else no loss depends on a trainable parameter
            torch.autograd.grad(values.sum(), leaves)
    return values.detach()


class _HookedPass:
    """The state of one watched pass: which layers are running, and what came out of them."""

    def __init__(self, formulas: list[LayerFormula], on_gradient: OnGradient) -> None:
        self.on_gradient = on_gradient
        self.own = {formula: [formula.module.get_parameter(name) for name in formula.names] for formula in formulas}
        self.names: dict[Tensor, str] = {
            p: name for formula in formulas for p, name in zip(self.own[formula], formula.names.values(), strict=True)
        }
        self.running: Counter[nn.Parameter] = Counter()
        self.outputs: list[tuple[LayerFormula, torch.Size]] = []
        self.paused = False

    @contextmanager
    def hooks(self) -> Iterator[None]:
        handles = []
        for formula in self.own:
            before, after = partial(self._before, formula), partial(self._after, formula)
            handles += [
                formula.module.register_forward_pre_hook(before),
                formula.module.register_forward_hook(after, prepend=True, with_kwargs=True),  # what forward returned
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
        for formula, shape in self.outputs:
            if reason := why_not(formula, shape, n, axes):
                raise UncoveredLayerError(formula.name, reason)

    def _before(self, formula: LayerFormula, *_: Any) -> None:
        if not self.paused:
            for parameter in self.own[formula]:
                self.running[parameter] += 1
                parameter.requires_grad_(False)

    def _after(self, formula: LayerFormula, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if self.paused:
            return None
        tapped = self._tap(formula, args, kwargs, output) if torch.is_grad_enabled() else None
        for parameter in self.own[formula]:
            self.running[parameter] -= 1
            parameter.requires_grad_(not self.running[parameter])
        return tapped

    def _tap(self, formula: LayerFormula, args: Any, kwargs: Any, output: Any) -> Tensor:
        """Keep the inputs until the output's gradient arrives, then hand over both."""
        if not isinstance(output, Tensor) or not output.is_floating_point():
            found = str(output.dtype) if isinstance(output, Tensor) else type(output).__name__
            raise UncoveredLayerError(formula.name, f"it returns a {found}, not a tensor of floating-point numbers")
        formula.runs += 1
        self.outputs.append((formula, output.shape))
        if not output.requires_grad:  # the first layer there: its output becomes a leaf of the graph
            output = output.detach().requires_grad_().clone()  # a leaf itself may not be written over
        versions: list[tuple[Tensor, int]] = []

        def keep(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return pytree.tree_map_only(Tensor, keep, value)
            versions.append((value.detach(), value._version))
            return versions[-1][0]

        kept: list[Arguments] = [(tuple(map(keep, args)), {name: keep(value) for name, value in kwargs.items()})]

        def receive(gradient: Tensor) -> None:
            if any(tensor._version != version for tensor, version in versions):
                raise UncoveredLayerError(formula.name, "its input is written over in place")
            versions.clear()
            self.paused = True  # the layer may run again, alone, for its formula: that is not another use of it
            try:
                with torch.no_grad():
                    self.on_gradient(formula, kept.pop(), gradient)
            finally:
                self.paused = False

        output.register_hook(receive)
        return output


def _leaves(values: Tensor) -> list[Tensor]:
    """The tensors that a graph begins with."""
    leaves: list[Tensor] = []
    nodes = [values.grad_fn] if values.grad_fn is not None else []
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        earlier = {one for one, _ in node.next_functions if one is not None} - seen
        seen |= earlier
        nodes += earlier
        if not node.next_functions and isinstance(leaf := getattr(node, "variable", None), Tensor):
            leaves.append(leaf)
    return leaves
