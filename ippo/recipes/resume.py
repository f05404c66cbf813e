"""Going on with a run: what may change on the way, and whether there is anything left to do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Timer

from ippo.errors import require
from ippo.models.checkpoints import facts_of

_DONE = "the run began with {!r}, and that is done: leave this out, or begin another run in a directory of its own"
_AS_IT_BEGAN = (
    "task",
    "preset",
    "layout",
    "chat",
    "seed_everything",
    "splits",
    "embedded",
    "verifier",
    "gsm_symbolic",
    "tiny",
    "lora",
    "models.dtype",
    "models.value_gradient",
    "sft",
    "ppo.ptx_share",
)
"""What a run was made of. Everything else is read anew, and so holds from here on."""

Changes = dict[str, tuple[Any, Any]]
"""Each option that is not what it was: what it was, and is."""


def changes(then: str, now: str) -> Changes:
    """The options that two files of options have in common and do not agree on.

    Args:
        then, now: contents of ``config.yaml``.

    Example:
        >>> changes("ppo: {lam: 1.0, gamma: 1.0}", "ppo: {lam: 0.9, gamma: 1.0, new: 3}")
        {'ppo.lam': (1.0, 0.9)}
    """
    before, after = (dict(_leaves(yaml.safe_load(text))) for text in (then, now))
    return {key: (before[key], value) for key, value in after.items() if key in before and before[key] != value}


def require_applicable(changed: Changes, then: Namespace, now: Namespace) -> None:
    """Refuse a change that could only be written down.

    Args:
        changed: see :func:`changes`.
        then, now: the options as objects.

    Raises:
        UsageError: naming the option, and what the run has.
    """
    for key, (before, after) in changed.items():
        of_its_making = any(key == name or key.startswith(f"{name}.") for name in _AS_IT_BEGAN)
        require(not of_its_making, key, after, _DONE.format(before))
    critics = then.ppo.uses_values == now.ppo.uses_values
    require(critics, "ppo.advantage", now.ppo.advantage, f"{_DONE.format(then.ppo.advantage)}: one has a critic")
    if "ppo.kl_coef" in changed and "AdaptiveKL" in str(now.trainer.callbacks):
        require(False, "ppo.kl_coef", now.ppo.kl_coef, "AdaptiveKL has moved it since: leave it out")
    before, after = map(_listed, changed.get("trainer.callbacks", (None, None)))
    remedy = "the run's own come first: add others with --trainer.callbacks+=, and leave its own out"
    require(after[: len(before)] == before, "trainer.callbacks", [_named(one) for one in after], remedy)


def without_doubles(callbacks: Any) -> Any:
    """The callbacks of a configuration, each once: a command line that is given again names those of the run again.

    Example:
        >>> without_doubles([{"class_path": "A"}, {"class_path": "B"}, {"class_path": "A"}])
        [{'class_path': 'A'}, {'class_path': 'B'}]
    """
    if not isinstance(callbacks, list):
        return callbacks  # none, or one
    return [one for place, one in enumerate(callbacks) if one not in callbacks[:place]]


def why_finished(checkpoint: Path, summary: Path, trainer: Namespace, changed: Changes) -> str | None:
    """Why there is nothing left to do, and what would let the run go on; None where there is something.

    Args:
        checkpoint: the run's newest.
        summary: its ``summary.json``; one that is not there, or not of a whole run, is to be written yet.
        trainer: options of the trainer.
        changed: see :func:`changes`.
    """
    found = json.loads(summary.read_text()) if summary.exists() else {}
    if found.get("trained") is None:
        return None
    kept = facts_of(checkpoint)
    done, most = kept["epoch"] + 1, trainer.max_epochs or -1
    if 0 < most <= done:
        return f"{done} of trainer.max_epochs = {most} iterations are done: a larger number goes on"
    if 0 < trainer.max_steps <= kept["global_step"]:
        return f"trainer.max_steps = {trainer.max_steps} optimizer steps are done: a larger number goes on"
    limit = Timer(duration=trainer.max_time)._duration if trainer.max_time else None
    spent = kept["callbacks"].get("Timer", {}).get("time_elapsed", {}).get("train", 0.0)
    if limit is not None and spent >= limit:
        return f"it has had the {timedelta(seconds=limit)} hours of trainer.max_time: a longer time goes on"
    why = found.get("stopped_by", "")
    if not found.get("interrupted") and not why.startswith("max_") and not changed:
        return f"it was stopped by: {why}; with an option changed that bears on this it goes on"
    return None


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and "class_path" not in value:
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _listed(callbacks: Any) -> list[Any]:
    return [] if callbacks is None else callbacks if isinstance(callbacks, list) else [callbacks]


def _named(callback: Any) -> str:
    return str(callback["class_path"]).rpartition(".")[2] if isinstance(callback, Mapping) else str(callback)
