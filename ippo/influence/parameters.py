"""Which parameters are scored, and the state a module is in while they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Union
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ippo.errors import require
from ippo.influence.sharding import at_rest, is_spread, require_known_sharding, wake
from ippo.modes import evaluation_mode, uncompiled

Subset = Union[int, str, None]  # in this order: a command line's "1" is a number
"""Which trainable parameters count: None for all, a number k for the last k blocks and what follows them, ``"lora"``,
or a regular expression that is searched in their names."""


_scored: list[tuple[nn.Module, dict[str, nn.Parameter]]] = []
"""What is being scored, the innermost last: nothing is frozen or thawed meanwhile, so that a module with thousands of
parts is walked once."""

_chosen: WeakKeyDictionary[nn.Module, dict[tuple[Subset, tuple[str, ...]], frozenset[str]]] = WeakKeyDictionary()
"""What subsets of a module's trainable parameters hold, which follows from the names."""


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name; a tied one appears once. Those that FSDP2 has spread over the
    ranks are the shards.

    Raises:
        UsageError: if there is none, or they are sharded in another way.
    """
    if _scored and _scored[-1][0] is module:
        return _scored[-1][1]
    at_rest(module)
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    require_known_sharding(parameters, module)
    require(
        bool(parameters), "module", type(module).__name__, "it has no trainable parameter: call requires_grad_(True)"
    )
    return parameters


def spread(module: nn.Module) -> bool:
    """Whether ranks hold parts of what is scored."""
    return is_spread(trainable(module))


def require_whole(module: nn.Module, argument: str, value: object) -> None:
    """Refuse a way to scores that takes the whole module on each rank.

    Raises:
        UsageError: if ranks hold parts of it.
    """
    remedy = (
        "it takes whole parameters, of which FSDP2 leaves parts to each rank: use ExactScorer('auto'), which scores "
        "them by hooks, or train with strategy=ddp"
    )
    require(not spread(module), argument, value, remedy)


def choose(module: nn.Module, subset: Subset) -> frozenset[str]:
    """The names of the trainable parameters in a subset.

    Raises:
        UsageError: if it holds none of them, or is no subset at all.

    Example:
        >>> model = nn.Sequential(nn.ModuleList([nn.Linear(1, 1, bias=False) for _ in range(3)]), nn.Linear(1, 1))
        >>> sorted(choose(model, 1))  # the last block, and the head after it
        ['0.2.weight', '1.bias', '1.weight']
        >>> sorted(choose(model, "bias$"))
        ['1.bias']
    """
    names = tuple(trainable(module))
    if subset is None:
        return frozenset(names)
    known = _chosen.setdefault(module, {})
    if (subset, names) not in known:
        known[subset, names] = _found(module, subset, names)
    return known[subset, names]


def _found(module: nn.Module, subset: Subset, names: tuple[str, ...]) -> frozenset[str]:
    remedy = "use null for all, a number of last blocks, 'lora', or a regular expression that finds some of them"
    if isinstance(subset, int) and not isinstance(subset, bool):
        require(subset >= 1, "parameters", subset, remedy)
        chosen = _last_blocks(module, subset)
    else:
        require(isinstance(subset, str), "parameters", subset, remedy)
        pattern = r"(^|\.)lora_" if subset == "lora" else str(subset)
        try:
            chosen = {name for name in names if re.search(pattern, name)}
        except re.error as error:
            require(False, "parameters", subset, f"it is no regular expression: {error}")
    chosen &= set(names)
    require(bool(chosen), "parameters", subset, f"it holds no trainable parameter of {type(module).__name__}; {remedy}")
    return frozenset(chosen)


@contextmanager
def scored(module: nn.Module, subset: Subset = None) -> Iterator[None]:
    """The state for scoring, scores and directions alike; afterwards all is as it was.

    Dropout is off, no parameter is trainable outside the subset, and the module computes in its parameters' own
    precision: a score is a small sum of large terms, which half precision rounds away. Compiled parts run as they were
    written: hooks and forward mode do not see inside a compiled graph.

    Raises:
        UsageError: if the subset does not fit the module.
    """
    parameters, chosen = trainable(module), choose(module, subset)
    others = [parameter for name, parameter in parameters.items() if name not in chosen]
    wake(module)
    for parameter in others:
        parameter.requires_grad_(False)
    _scored.append((module, {name: parameter for name, parameter in parameters.items() if name in chosen}))
    try:
        device = next(iter(parameters.values())).device.type
        with (
            evaluation_mode(module),
            _without_input_gradients(module),
            torch.autocast(device, enabled=False),
            uncompiled(),
        ):
            yield
    finally:
        _scored.pop()
        for parameter in others:
            parameter.requires_grad_(True)


def _last_blocks(module: nn.Module, count: int) -> set[str]:
    """Names in the last ``count`` blocks, and in whatever is registered after them.

    The blocks are the entries of the list that holds most parameters, of those with at least two entries of one kind:
    a block may have a list of its own, of experts or heads, and a longer one.
    """
    lists = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.ModuleList)]
    require(bool(lists), "parameters", count, "the module has no list of blocks: use a regular expression")
    alike = [pair for pair in lists if len(pair[1]) > 1 and len(set(map(type, pair[1]))) == 1]
    name, blocks = max(alike or lists, key=lambda pair: sum(parameter.numel() for parameter in pair[1].parameters()))
    prefix, first = f"{name}.", max(0, len(blocks) - count)
    ordered = [own for own, _ in module.named_parameters(remove_duplicate=False)]
    inside = [own for own in ordered if own.startswith(prefix)]
    kept = {own for own in inside if int(own[len(prefix) :].split(".")[0]) >= first}
    after = ordered[ordered.index(inside[-1]) + 1 :] if inside else []
    return kept | set(after)


@contextmanager
def _without_input_gradients(module: nn.Module) -> Iterator[None]:
    """Gradient checkpointing of Hugging Face models makes embeddings' outputs require a gradient by a hook, which
    forward-mode differentiation cannot pass. ``vars``, because PEFT's wrappers answer for the model inside them."""
    models = [part for part in module.modules() if vars(part).get("_require_grads_hook") is not None]
    for part in models:
        part.disable_input_require_grads()  # type: ignore[operator]
    try:
        yield
    finally:
        for part in models:
            part.enable_input_require_grads()  # type: ignore[operator]
