"""The options of a run that a table of runs should have a column for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

_GROUPS = ("task", "policy", "layout", "engine", "seed_everything", "filter", "ppo", "sampling", "sft", "lora", "data")
_OF = {
    "data": ("prompts_per_iteration",),
    "embedded": ("verifier_error", "verifier_hole", "verifier_hole_rate"),
    "trainer": ("max_epochs", "precision"),
}
"""Of a group with much that is seldom changed, what is chosen."""

Plain = bool | int | float | str


def hparams(config: str) -> dict[str, Plain]:
    """Plain values under dotted names; what is not set is left out, and an object is its class with its options.

    Args:
        config: the options in writing, as ``config.yaml`` has them.

    Example:
        >>> hparams("{task: gsm8k, filter: {class_path: a.Filter, init_args: {weight: null}}, data: {other: 0}}")
        {'task': 'gsm8k', 'filter': 'Filter'}
    """
    options: dict[str, Any] = yaml.safe_load(config)
    used = {"lora": options.get("layout") == "lora", "embedded": options.get("task") == "embedded"}
    chosen = {}
    for name in dict.fromkeys((*_GROUPS, *_OF)):
        if name in options and used.get(name, True):
            group = options[name]
            chosen[name] = {key: group.get(key) for key in _OF[name]} if name in _OF else group
    return dict(_plain(chosen))


def _plain(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Plain]]:
    for name, value in tree.items():
        key = f"{above}{name}"
        if isinstance(value, Mapping) and "class_path" in value:
            yield key, str(value["class_path"]).rpartition(".")[2]
            yield from _plain(value.get("init_args") or {}, f"{key}.")
        elif isinstance(value, Mapping):
            yield from _plain(value, f"{key}.")
        elif isinstance(value, bool | int | float | str):
            yield key, value
