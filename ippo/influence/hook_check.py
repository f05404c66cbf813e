"""A trial of the hooks' formulas, once for each module: shapes cannot tell a time axis of n steps from n episodes."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ippo.influence.hooks import OnGradient, UncoveredLayerError, hooked_backward
from ippo.influence.layer_formulas import Arguments, LayerFormula, ScaleFormula, find_layer_formulas, row_dots
from ippo.influence.loop import episode_gradients
from ippo.influence.parameters import check_losses, trainable

_passed: WeakKeyDictionary[nn.Module, dict[frozenset[str], set[str]]] = WeakKeyDictionary()
"""For each module and choice of trainable parameters, the layers that are a ScaleFormula."""


def checked_backward(module: nn.Module, losses: Callable[[], Tensor], on_gradient: OnGradient) -> Tensor:
    """:func:`hooked_backward`, after a trial against two plain backwards at the first time.

    The trial takes the first and the last episode of the batch: each layer's part of their scores along a random
    direction must be what their own gradients say. A layer without a formula of its own is also tried as a
    :class:`ScaleFormula`, which it stays if all gradients agree. A batch of one episode proves nothing and does not
    count.

    Raises:
        UncoveredLayerError: by name, if a layer fails.
    """
    names = frozenset(trainable(module))
    passed = _passed.setdefault(module, {})
    if names in passed:
        scales = passed[names]
    else:
        proven, scales = _trial(module, losses)
        if proven:
            passed[names] = scales
    return hooked_backward(module, losses, on_gradient, scales)


def _trial(module: nn.Module, losses: Callable[[], Tensor]) -> tuple[bool, set[str]]:
    """Whether the trial was one (an episode alone, or gradients that are all zero, are none), and each ScaleFormula."""
    direction = _Random(trainable(module))
    groups = _groups(find_layer_formulas(module))
    expected = _by_plain_backwards(module, losses, direction, groups)
    found: dict[str, list[Tensor]] = defaultdict(list)
    scales: set[str] = set()
    others: set[str] = set()

    def add(formula: LayerFormula, arguments: Arguments, b: Tensor) -> None:
        part = formula.dots(arguments, b, direction)
        if type(formula) is LayerFormula:  # its gradients a row take a reading of the arguments of their own
            rows = formula.row_gradients(arguments, b)
            again = row_dots(rows, formula.along(direction))
            part = torch.where((again - part).abs() <= 0.01 * part.abs().max(), part, torch.nan)
            (scales if ScaleFormula.fits(formula, arguments, b, rows) else others).add(formula.name)
        found[groups[formula.name]].append(part)

    n = len(hooked_backward(module, losses, add))
    largest = max(float(part.abs().max()) for part in expected.values())
    half = any(parameter.dtype in (torch.bfloat16, torch.float16) for parameter in trainable(module).values())
    relative, absolute = (0.25, 0.1) if half else (0.01, 1e-4)
    for group, part in expected.items():
        rows = torch.stack(found[group]).sum(0)[[0, -1]] if found[group] else part * 0
        if not bool(((rows - part).abs() <= relative * part.abs().max() + absolute * largest).all()):
            raise UncoveredLayerError(group, "the rows that its hooks see are not the episodes")
    return n > 1 and largest > 0, scales - others


def _by_plain_backwards(
    module: nn.Module, losses: Callable[[], Tensor], direction: Mapping[str, Tensor], groups: Mapping[str, str]
) -> dict[str, Tensor]:
    """[2] each group's part of the scores of the first and the last episode."""
    with torch.enable_grad():
        values = losses()
        check_losses(values)
        parts = {group: torch.zeros(2, device=values.device) for group in groups.values()}
        for end, gradients in enumerate(episode_gradients(module, values[[0, -1]])):
            for name, gradient in gradients.items():
                parts[groups[name]][end] += (gradient.float() * direction[name]).sum()
    return parts


def _groups(formulas: list[LayerFormula]) -> dict[str, str]:
    """For each layer and each parameter the layer it is compared with; layers that share a parameter go together."""
    groups: dict[str, str] = {}
    for formula in formulas:
        known = [groups[name] for name in formula.names.values() if name in groups]
        own = known[0] if known else formula.name
        merged = set(known)
        groups = {key: own if group in merged else group for key, group in groups.items()}
        groups.update(dict.fromkeys((formula.name, *formula.names.values()), own))
    return groups


class _Random(Mapping[str, Tensor]):
    """A random direction that is drawn where it is read, parameter by parameter, and never kept."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = parameters

    def __getitem__(self, name: str) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        parameter = self.parameters[name]
        return torch.randn(parameter.shape, generator=generator).to(parameter.device)

    def __iter__(self) -> Iterator[str]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)
