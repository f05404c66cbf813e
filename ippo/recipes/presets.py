"""Which files of options hold before the user's own: one for the task, and those for the policy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ippo.errors import require

CONFIGS = Path(__file__).parent / "configs"


def preset_files(arguments: Sequence[str], task: str, policy: str) -> list[Path]:
    """The files for the task and the policy that the user names, in the order in which they hold.

    ``tasks/NAME.yaml`` knows lengths and sizes; ``policies/tiny.yaml`` or ``policies/pretrained.yaml`` and
    ``policies/NAME.yaml`` know rates. A task or policy without a file of its own is none of this function's business.

    Args:
        arguments: the command line; ``--preset``, the ``--config`` files, and ``--task`` and ``--policy`` speak, the
            later over the earlier.
        task, policy: what holds if none of them does.

    Raises:
        UsageError: if a preset has no such parts.

    Example:
        >>> [path.stem for path in preset_files(["--task=gsm8k", "--policy=phi3_4b"], "embedded", "tiny")]
        ['gsm8k', 'pretrained', 'phi3_4b']
        >>> [path.stem for path in preset_files(["--preset", "gsm_symbolic_smollm2"], "embedded", "tiny")]
        ['gsm_symbolic', 'pretrained', 'smollm2']
    """
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--preset", "--task", "--policy"):
        reader.add_argument(name)
    reader.add_argument("--config", action="append", default=[])
    said = reader.parse_known_args(list(arguments))[0]
    if said.preset is not None:
        task, policy = _parts(said.preset)
    for path in said.config:
        content = _content(Path(path))
        task, policy = content.get("task", task), content.get("policy", policy)
    task, policy = said.task or task, said.policy or policy
    families = ["tiny"] if policy == "tiny" else ["pretrained", policy]
    files = [CONFIGS / "tasks" / f"{task}.yaml", *(CONFIGS / "policies" / f"{name}.yaml" for name in families)]
    return [path for path in files if path.parent.parent == CONFIGS and path.is_file()]


def policy_id(name: str) -> str:
    """Where the policy called ``name`` is: its hub id if it has a file here, else the name itself.

    Example:
        >>> policy_id("rho1b"), policy_id("tiny"), policy_id("Qwen/Qwen2.5-0.5B")
        ('microsoft/rho-math-1b-v0.1', 'tiny', 'Qwen/Qwen2.5-0.5B')
    """
    return _content(CONFIGS / "policies" / f"{name}.yaml").get("policy", name)


def names(kind: str) -> list[str]:
    """The names that have a file, of ``"tasks"`` or ``"policies"``."""
    return sorted(path.stem for path in (CONFIGS / kind).glob("*.yaml"))


def _parts(preset: str) -> tuple[str, str]:
    pairs = {f"{task}_{policy}": (task, policy) for task in names("tasks") for policy in names("policies")}
    known = f"join a task ({', '.join(names('tasks'))}) and a policy ({', '.join(names('policies'))}) by _"
    require(preset in pairs, "preset", preset, known)
    return pairs[preset]


def _content(path: Path) -> dict[str, Any]:
    """What a file of options says; nothing if it cannot be read, which the parser will tell better."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}
