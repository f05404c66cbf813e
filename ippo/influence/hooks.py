"""Hooks that hand over each layer's inputs and output gradient, in one forward and one backward for activations only.

While a module is watched a parameter needs no gradient inside the layers that own it, so the backward forms none; and
nothing slips by: outside of them it does, so that a use that hooks cannot see is in the graph of the losses, and is
refused by name, as a layer is whose rows are not the episodes.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ippo.errors import UsageError
from ippo.influence.inputs import check_losses
from ippo.influence.layer_formulas import UNTRIED, Arguments, Kinds, LayerFormula, find_layer_formulas, why_not
from ippo.influence.recompute import checkpointed_layers, recomputing
from ippo.influence.row_probe import RowProbe
from ippo.influence.sharding import gathered_in_turn, gathering_parts, unshard_for_backward

ROWS_ARE_NOT_EPISODES = "the rows that its hooks see are not the episodes"

OnGradient = Callable[[LayerFormula, Arguments, Tensor], None]
"""Called once a layer and use, from the last to the first, with the layer's inputs and its output's gradient."""


class Trace(NamedTuple):
    """What a pass looked like. Where two look alike, rows that were the episodes in one are likely so in the other.

    Args:
        operations: of the graph, each with its number.
        sizes: of the layers' outputs, each axis but the first to a power of two.
        ambiguous: whether an axis in the middle of one is as long as the batch.
    """

    operations: frozenset[tuple[str, int]]
    sizes: frozenset[tuple[int, ...]]
    ambiguous: bool


Doubts = Callable[[Trace, int], bool]
"""Whether the rows of a pass like this, of so many episodes, are to be probed, see :class:`RowProbe`."""


class UncoveredLayerError(UsageError):
    """A layer that hooks cannot tell apart by episode."""

    def __init__(self, layer: str, reason: str, remedy: str = "use backend='jvp' or 'loop' of ExactScorer") -> None:
        super().__init__("backend", "ghost", f"it cannot cover {layer!r}: {reason}; {remedy}")
        self.layer, self.reason = layer, reason


def hooked_backward(
    module: nn.Module,
    losses: Callable[[], Tensor],
    on_gradient: OnGradient,
    kinds: Kinds = UNTRIED,
    doubts: Doubts | None = None,
) -> Tensor:
    """One forward and one backward of ``losses().sum()`` that shows ``on_gradient`` every layer; no ``.grad`` changes.

    Args:
        module: its trainable parameters' layers are watched.
        losses: runs the forward; returns [n], one loss an episode.
        on_gradient: see :data:`OnGradient`.
        kinds: see :func:`find_layer_formulas`.
        doubts: asked when the losses are there; a second backward through the same graph then probes the rows.

    Returns:
        [n] the losses, detached.

    Raises:
        UncoveredLayerError: if a trainable parameter acts where its layer's hooks cannot see it, by episode, or a probe
            finds rows that are not the episodes.
    """
    watch = _HookedPass(module, find_layer_formulas(module, kinds), on_gradient)
    layers = checkpointed_layers(module)
    with torch.enable_grad(), watch.hooks(), recomputing(layers, watch), gathered_in_turn(module):
        values = losses()
        check_losses(values)
        watch.check_rows(len(values))
        leaves, operations = watch.begins_with([values])
        if leaves:  # else no loss depends on a trainable parameter
            if doubts is not None and doubts(watch.trace(operations, len(values)), len(values)):
                watch.probe = RowProbe(values)
            torch.autograd.grad(values.sum(), leaves, retain_graph=watch.probe is not None)
            if watch.probe is not None:
                watch.probing = True
                torch.autograd.grad(values, leaves, watch.probe.factors)
    return values.detach()


class _HookedPass:
    """The state of one watched pass: which layers are running, and what came out of them."""

    def __init__(self, module: nn.Module, formulas: list[LayerFormula], on_gradient: OnGradient) -> None:
        self.on_gradient, self.formulas = on_gradient, formulas
        self.gathering = gathering_parts(module)
        self.names: dict[Tensor, str] = {}  # of the watched parameters, and of what stands in the place of shards
        self._learn_names(formulas)
        self.running: Counter[str] = Counter()  # uses of a parameter by layers that are running
        self.outputs: list[tuple[LayerFormula, torch.Size]] = []
        self.paused = False
        self.probe: RowProbe | None = None
        self.probing = False  # in the second backward, that of the probe
        self.sketches: defaultdict[LayerFormula, deque[Tensor]] = defaultdict(deque)  # of the first one's gradients
        self.run: Literal["only", "ahead", "again"] = "only"  # of a layer whose activations are checkpointed: which

    @contextmanager
    def during(self, run: Literal["ahead", "again"]) -> Iterator[None]:
        """See :class:`ippo.influence.recompute.Pass`: the first run is counted, the second one is shown."""
        before, self.run = self.run, run
        try:
            yield
        finally:
            self.run = before

    def owns(self, layer: nn.Module) -> bool:
        """Whether anything inside a layer is watched."""
        return bool(self._inside(layer))

    def begins_with(self, outputs: list[Tensor]) -> tuple[list[Tensor], Counter[str]]:
        """The leaves and the operations of the graph of ``outputs``.

        Raises:
            UncoveredLayerError: if a watched parameter is one of the leaves.
        """
        leaves, operations = _walk(outputs)
        for leaf in leaves:
            if leaf in self.names:
                raise UncoveredLayerError(self.names[leaf], "it is used outside the forward of the layer that owns it")
        return leaves, operations

    @contextmanager
    def hooks(self) -> Iterator[None]:
        handles = []
        for part in self.gathering:  # after it has gathered its parameters, and before any layer inside runs
            learn = partial(self._learn_names, self._inside(part))
            handles.append(part.register_forward_pre_hook(learn))
        for formula in self.formulas:
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
            for parameter in self.names:  # an error may have ended a layer half way
                parameter.requires_grad_(True)

    def check_rows(self, n: int) -> None:
        axes = max((len(shape) for _, shape in self.outputs), default=0)
        for formula, shape in self.outputs:
            if reason := why_not(formula, shape, n, axes):
                raise UncoveredLayerError(formula.name, reason)

    def trace(self, operations: Counter[str], n: int) -> Trace:
        shapes = {shape for _, shape in self.outputs}
        sizes = frozenset(tuple(size.bit_length() for size in shape[1:]) for shape in shapes)
        return Trace(frozenset(operations.items()), sizes, any(n in shape[1:-1] for shape in shapes))

    def _inside(self, part: nn.Module) -> list[LayerFormula]:
        inside = set(part.modules())
        return [formula for formula in self.formulas if formula.module in inside]

    def _learn_names(self, formulas: list[LayerFormula], *_: Any) -> None:
        """Those of the parameters that are there now."""
        self.names.update((parameter, name) for formula in formulas for name, parameter in formula.present.items())

    def _before(self, formula: LayerFormula, *_: Any) -> None:
        if not self.paused:
            for name, parameter in formula.present.items():
                self.running[name] += 1
                parameter.requires_grad_(False)

    def _after(self, formula: LayerFormula, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if self.paused:
            return None
        if self.run == "ahead" or (torch.is_grad_enabled() and self.run == "only"):
            self._count(formula, output)
        tapped = self._tap(formula, args, kwargs, output) if torch.is_grad_enabled() else None
        for name, parameter in formula.present.items():
            self.running[name] -= 1
            parameter.requires_grad_(not self.running[name])
        return tapped

    def _count(self, formula: LayerFormula, output: Any) -> None:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            found = str(output.dtype) if isinstance(output, Tensor) else type(output).__name__
            raise UncoveredLayerError(formula.name, f"it returns a {found}, not a tensor of floating-point numbers")
        formula.runs += 1
        self.outputs.append((formula, output.shape))

    def _tap(self, formula: LayerFormula, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        """Keep the inputs until the output's gradient arrives, then hand over both."""
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
            if self.probing:
                waiting = self.sketches[formula]  # gradients arrive in the same order again
                if waiting and not self.probe.agrees(gradient, waiting.popleft()):  # type: ignore[union-attr]
                    raise UncoveredLayerError(formula.name, ROWS_ARE_NOT_EPISODES)
                return
            if self.probe is not None:
                self.sketches[formula].append(self.probe.sketch(gradient))
            if any(tensor._version != version for tensor, version in versions):
                raise UncoveredLayerError(formula.name, "its input is written over in place")
            versions.clear()
            self.paused = True  # the layer may run again, alone, for its formula: that is not another use of it
            try:
                unshard_for_backward(formula.module)
                with torch.no_grad():
                    self.on_gradient(formula, kept.pop(), gradient)
            finally:
                self.paused = False

        output.register_hook(receive)
        return output


def _walk(outputs: list[Tensor]) -> tuple[list[Tensor], Counter[str]]:
    """The tensors that a graph begins with, and how often each operation is in it."""
    leaves: list[Tensor] = []
    operations: Counter[str] = Counter()
    nodes = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        operations[node.name()] += 1
        earlier = {one for one, _ in node.next_functions if one is not None} - seen
        seen |= earlier
        nodes += earlier
        if not node.next_functions and isinstance(leaf := getattr(node, "variable", None), Tensor):
            leaves.append(leaf)
    return leaves, operations
