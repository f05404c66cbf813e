"""Fast ways to a score are believed once they agree with a plain backward: shapes cannot tell a time axis of n steps
from n episodes, and a derivative need not be the gradient that training sees."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ippo.distributed import largest, own_part, placed_like, total
from ippo.errors import UsageError
from ippo.influence.direction import Losses
from ippo.influence.hooks import ROWS_ARE_NOT_EPISODES, OnGradient, Trace, UncoveredLayerError, hooked_backward
from ippo.influence.jvp import derivative
from ippo.influence.layer_formulas import (
    Arguments,
    LayerFormula,
    ScaleFormula,
    find_layer_formulas,
    row_dots,
)
from ippo.influence.loop import LoopFormula
from ippo.influence.parameters import spread, trainable
from ippo.influence.plain_gradients import plain_gradients
from ippo.influence.precision import WatchPrecision, half_of
from ippo.modes import evaluation_mode

PROBED_FIRST, PROBED_EVERY = 4, 16
"""Rows are probed in so many first passes, then in one of so many, and wherever a pass looks unlike those before it."""


class MismatchError(UsageError):
    """Forward mode gives another derivative than a backward pass."""

    def __init__(self) -> None:
        self.reason = "forward mode does not give the gradient that a backward does"
        remedy = f"{self.reason}: a hook or a function changes it on its way; use backend='loop'"
        super().__init__("backend", "jvp", remedy)


@dataclass
class _Trust:
    """In the hooks of a module with these trainable parameters.

    Args:
        kinds: of the layers without a formula of their own, see :data:`ippo.influence.layer_formulas.Kinds`.
        alone: whether the trial had one episode, which tells nothing of rows.
        together: where ranks hold parts of the module, and so must decide alike, their device.
    """

    kinds: dict[str, type[LayerFormula]]
    alone: bool
    together: torch.device | None = None
    passes: int = 0
    known: set[Trace] = field(default_factory=set)

    def doubts(self, trace: Trace, n: int) -> bool:
        """See :data:`ippo.influence.hooks.Doubts`; one rank's are all ranks'."""
        doubt = self._doubt(trace) if n > 1 else _Doubt.NONE
        if self.together is not None:
            doubt = largest(doubt, self.together)
        if doubt == _Doubt.TRIAL:
            raise _FirstNeighboursError
        return doubt == _Doubt.ROWS

    def _doubt(self, trace: Trace) -> int:
        if self.alone:
            return _Doubt.TRIAL
        new = trace not in self.known
        self.known.add(trace)
        self.passes += 1
        return _Doubt(new or self.passes <= PROBED_FIRST or self.passes % PROBED_EVERY == 0)


class _Doubt(IntEnum):
    """What a pass is not believed in."""

    NONE = 0
    ROWS = 1
    TRIAL = 2  # what was tried with one episode meets several


class _FirstNeighboursError(Exception):
    """What was tried with one episode meets several."""


_trusted: WeakKeyDictionary[nn.Module, dict[frozenset[str], _Trust]] = WeakKeyDictionary()
_held: WeakKeyDictionary[nn.Module, set[frozenset[str]]] = WeakKeyDictionary()
"""Modules whose derivative was found to be their gradient, with the trainable parameters that they had."""


def checked_backward(module: nn.Module, losses: Callable[[], Tensor], on_gradient: OnGradient) -> Tensor:
    """:func:`hooked_backward`, after a trial against a plain backward at the first time, and with probes of the rows.

    The trial takes the batch's losses, each times a random factor: each layer's part of the sum of the scores along a
    random direction must be what the plain gradient says. A layer without a formula of its own is also tried as a
    :class:`ScaleFormula`, which it stays if all gradients agree.

    Raises:
        UncoveredLayerError: by name, if a layer fails.
    """
    names = frozenset(trainable(module))
    trusted = _trusted.setdefault(module, {})
    try:
        if (trust := trusted.get(names)) is not None:
            try:
                return hooked_backward(module, losses, told_by_name(on_gradient), trust.kinds, trust.doubts)
            except _FirstNeighboursError:
                pass
        device = next(iter(trainable(module).values())).device
        trust = trusted[names] = _Trust({}, alone=False, together=device if spread(module) else None)
        if not _trial(module, losses, trust):
            del trusted[names]
        return hooked_backward(module, losses, told_by_name(on_gradient), trust.kinds)
    except UncoveredLayerError as refusal:
        trusted.pop(names, None)
        if not spread(module):
            raise
        remedy = "FSDP2 leaves parts of it to each rank: score other `parameters`, or train with strategy=ddp"
        raise UncoveredLayerError(refusal.layer, refusal.reason, remedy) from refusal


def checked_derivative(
    module: nn.Module, function: Losses, batch: Any, direction: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor | None]:
    """:func:`derivative`, which at the first time must be what a plain backward of the values says, each times a random
    factor: hooks on gradients and functions with a backward of their own may give training another one.

    Raises:
        MismatchError: if it is not.
    """
    values, jvps = derivative(module, function, batch, direction)
    names, held = frozenset(trainable(module)), _held.setdefault(module, set())
    if names not in held and bool(values.isfinite().all()):
        factors = _factors(values)
        expected, precision = 0.0, WatchPrecision()
        with precision:
            gradients = _plain_gradients(module, lambda: function(module, batch), factors)
        for name, gradient in gradients.items():
            expected += float((gradient.float() * direction[name].float()).sum())
        parts = factors * (torch.zeros_like(values) if jvps is None else jvps).float()
        rounding = 3 * _tolerance(module, precision)[0]  # large logits lose a thousandth of a log-probability's slope
        if abs(float(parts.sum()) - expected) > rounding * float(parts.norm()):
            raise MismatchError
        if bool(parts.any()):
            held.add(names)
    return values, jvps


def _trial(module: nn.Module, losses: Callable[[], Tensor], trust: _Trust) -> bool:
    """Whether the trial was one: gradients that are all zero are none."""
    direction = RandomDirection(trainable(module))
    groups = _groups(find_layer_formulas(module))
    precision = WatchPrecision()
    found: dict[str, list[Tensor]] = defaultdict(list)
    kinds: dict[str, set[type[LayerFormula]]] = defaultdict(set)  # one for each use of a layer

    def add(formula: LayerFormula, arguments: Arguments, b: Tensor) -> None:
        try:
            part = formula.dots(arguments, b, direction)
        except NotImplementedError:
            kinds[formula.name].add(LoopFormula)
            part = LoopFormula(formula.name, formula.module, formula.names).dots(arguments, b, direction)
            found[groups[formula.name]].append(part)
            return
        if type(formula) is LayerFormula:  # its gradients a row take a reading of the arguments of their own
            rows = formula.row_gradients(arguments, b)
            again = row_dots(rows, formula.along(direction))
            if not bool(((again - part).abs() <= max(0.01, _tolerance(module, precision)[0]) * part.abs().max()).all()):
                raise UncoveredLayerError(formula.name, ROWS_ARE_NOT_EPISODES)
            scales = len(b) > 1 and ScaleFormula.fits(formula, arguments, b, rows)
            kinds[formula.name].add(ScaleFormula if scales else LayerFormula)
        found[groups[formula.name]].append(part)

    def watched() -> Tensor:
        with precision:
            return losses()

    values = hooked_backward(module, watched, told_by_name(add), doubts=trust.doubts)
    factors = _factors(values)
    expected: dict[str, float] = dict.fromkeys(groups.values(), 0.0)
    for name, gradient in _plain_gradients(module, losses, factors).items():
        precise = gradient.float()
        along = placed_like(direction[name], precise)
        expected[groups[name]] += float((own_part(precise) * own_part(along)).sum())
    parts = {group: factors * torch.stack(found[group]).sum(0) if found[group] else factors * 0 for group in expected}
    sums = torch.tensor([[expected[group], part.sum(), part.norm() ** 2] for group, part in parts.items()])
    if trust.together is not None:  # a plain gradient is one of all ranks' losses there
        sums = total(sums.to(trust.together)).cpu()
    relative, absolute = _tolerance(module, precision)
    norms = sums[:, 2].sqrt()
    for group, (plain, fast, _), norm in zip(parts, sums.tolist(), norms.tolist(), strict=True):
        if not abs(fast - plain) <= relative * norm + absolute * float(norms.max()):
            raise UncoveredLayerError(group, "its formula does not give the gradient that a backward does")
    trust.alone = (len(values) if trust.together is None else largest(len(values), trust.together)) == 1
    trust.kinds = {name: next(iter(uses)) for name, uses in kinds.items() if len(uses) == 1}
    return bool(norms.max() > 0)


def _plain_gradients(module: nn.Module, values: Callable[[], Tensor], factors: Tensor) -> dict[str, Tensor]:
    """Of the sum of the values times their factors, without the parameters that they do not read."""
    parameters = trainable(module)
    with torch.enable_grad(), evaluation_mode(module, checkpointing=True):
        found = values()
        if not found.requires_grad and not spread(module):
            return {}
        return plain_gradients(parameters, found, factors.to(found))


def _factors(values: Tensor) -> Tensor:
    """Between 0.5 and 1.5, of either sign; the same for values of one shape."""
    draws = torch.rand((2, *values.shape), generator=torch.Generator().manual_seed(0))
    return ((draws[0] + 0.5) * (draws[1] - 0.5).sign()).to(values.device)


def _tolerance(module: nn.Module, precision: WatchPrecision) -> tuple[float, float]:
    """Relative to a part of the scores, and to the largest part: what rounding may do to them."""
    if precision.half or half_of(module):
        return 0.25, 0.1
    elsewhere = any(parameter.device.type != "cpu" for parameter in trainable(module).values())
    return (0.01, 1e-4) if elsewhere else (1e-3, 1e-5)  # TF32


def told_by_name(on_gradient: OnGradient) -> OnGradient:
    """The same; where a formula does not take what its layer takes, the layer is refused by name."""

    def call(formula: LayerFormula, arguments: Arguments, b: Tensor) -> None:
        try:
            on_gradient(formula, arguments, b)
        except (UsageError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            what = str(error).strip().split("\n")[0]
            raise UncoveredLayerError(formula.name, f"its formula fails ({type(error).__name__}: {what})") from error

    return call


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


class RandomDirection(Mapping[str, Tensor]):
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
