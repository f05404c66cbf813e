"""Which files of options hold before the user's own: one for the task, and those for the policy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ippo.errors import near, require

CONFIGS = Path(__file__).parent / "configs"


def preset_files(arguments: Sequence[str], task: str, policy: str) -> list[Path]:
    """The files for the task and the policy that the user names, in the order in which they hold.

    ``pretrained.yaml`` (for all policies but the tiny one) knows the PPO stage, ``tasks/NAME.yaml`` lengths and sizes,
    ``policies/NAME.yaml`` what a policy needs. One without a name here (a path, a hub id) is taken for the preset's.

    Args:
        arguments: the command line; ``--preset``, the ``--config`` files, and ``--task`` and ``--policy`` speak, the
            later over the earlier.
        task, policy: what holds if none of them does.

    Raises:
        UsageError: if a preset has no such parts.

    Example:
        >>> [path.stem for path in preset_files(["--task=gsm8k", "--policy=phi3_4b"], "embedded", "tiny")]
        ['pretrained', 'gsm8k', 'phi3_4b']
        >>> [path.stem for path in preset_files(["--preset=gsm8k_phi3_4b", "--policy=./mine"], "embedded", "tiny")]
        ['pretrained', 'gsm8k', 'phi3_4b']
        >>> [path.stem for path in preset_files(["--policy", "./mine"], "embedded", "tiny")]
        ['pretrained', 'embedded']
    """
    said = told(arguments)
    family = said.get("policy", policy)
    if "preset" in said:
        task, named = _parts(said["preset"])
        family = family if family in names("policies") and "policy" in said else named
    general = None if family == "tiny" else CONFIGS / "pretrained.yaml"
    chosen = (general, _file("tasks", said.get("task", task)), _file("policies", family))
    return [path for path in chosen if path is not None]


def told(arguments: Sequence[str]) -> dict[str, str]:
    """What a command line and its files say of ``preset``, ``task`` and ``policy``, the later over the earlier.

    Example:
        >>> told(["--task", "gsm8k", "--filter=none"])
        {'task': 'gsm8k'}
    """
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("--preset", "--task", "--policy"):
        reader.add_argument(name, nargs="?")
    reader.add_argument("--config", action="append", nargs="?", default=[])
    said = reader.parse_known_args(list(arguments))[0]
    files = [_content(Path(path)) for path in said.config if path]
    found = {key: content[key] for content in files for key in ("preset", "task", "policy") if content.get(key)}
    return found | {key: value for key in ("preset", "task", "policy") if (value := getattr(said, key))}


def policy_id(name: str) -> str:
    """Where the policy called ``name`` is: its hub id if it has a file here, else the name itself.

    Example:
        >>> policy_id("rho1b"), policy_id("tiny"), policy_id("Qwen/Qwen2.5-0.5B")
        ('microsoft/rho-math-1b-v0.1', 'tiny', 'Qwen/Qwen2.5-0.5B')
    """
    path = _file("policies", name)
    return _content(path)["policy"] if path is not None else name


def names(kind: str) -> list[str]:
    """The names that have a file, of ``"tasks"`` or ``"policies"``."""
    return sorted(path.stem for path in (CONFIGS / kind).glob("*.yaml"))


def _file(kind: str, name: str) -> Path | None:
    return CONFIGS / kind / f"{name}.yaml" if name in names(kind) else None


def _parts(preset: str) -> tuple[str, str]:
    pairs = {f"{task}_{policy}": (task, policy) for task in names("tasks") for policy in names("policies")}
    known = f"join a task ({', '.join(names('tasks'))}) and a policy ({', '.join(names('policies'))}) by _"
    require(preset in pairs, "preset", preset, f"{known}{near(preset, pairs)}")
    return pairs[preset]


def _content(path: Path) -> dict[str, Any]:
    """What a file of options says; nothing if it cannot be read, which the parser will tell better."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}
