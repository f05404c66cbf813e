"""What a run started from, kept in its directory, so that its checkpoints stand alone.

A checkpoint holds what is trained. What is frozen beside it, the base of adapters and the reference of the KL penalty,
is the policy after the warm start: a cache may lose it, and another version of a library would train another one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ippo.errors import require
from ippo.models.adapters import merge_into, shared_copy
from ippo.models.export import inherit_vocabulary

_ORIGIN = "origin.json"


def start_of(run: Path) -> Path:
    """Where a run keeps what it started from: a model or an adapter, and of what it was made."""
    return run / "start"


def origin(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """By what the policy before its warm start and its tokenizer can be known again."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
    return {"policy": digest(policy.state_dict().items()), "tokenizer": hashlib.sha256(vocabulary).hexdigest()}


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of names and values, to the bit."""
    found = hashlib.sha256()
    for name, value in tensors:
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def keep_start(run: Path, made_of: dict[str, str], folder: Path | None) -> None:
    """Keep a warm start with the run.

    Args:
        run: its directory.
        made_of: see :func:`origin`.
        folder: the finished warm start; None if there was none. Its files are linked, not copied, where the run is on
            the same disk.
    """
    run.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=run, prefix=".unfinished-"))
    for file in sorted(folder.iterdir()) if folder is not None else ():
        try:
            os.link(file, unfinished / file.name)
        except OSError:
            shutil.copy2(file, unfinished / file.name)
    (unfinished / _ORIGIN).write_text(json.dumps(made_of, indent=2) + "\n")
    unfinished.chmod(0o755)
    shutil.rmtree(start_of(run), ignore_errors=True)  # of a run that ended before its first checkpoint
    unfinished.replace(start_of(run))


def load_start(run: Path, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The policy that the run started from.

    Args:
        run: its directory, with what :func:`keep_start` left.
        policy, tokenizer: as the run's options load them now.

    Raises:
        UsageError: if they are not those that the run was made of, and it needs them.
    """
    place = start_of(run)
    then, now = json.loads((place / _ORIGIN).read_text()), origin(policy, tokenizer)
    remedy = f"it has other tokens than the one that {run} was made with: give that one (--tokenizer)"
    require(then["tokenizer"] == now["tokenizer"], "tokenizer", tokenizer.name_or_path, remedy)
    if any(place.glob("model*.safetensors")):  # all of it
        return inherit_vocabulary(type(policy).from_pretrained(place, dtype=policy.dtype), policy)
    require_same_policy(run, then["policy"] == now["policy"], policy)
    if any(place.glob("adapter*.safetensors")):
        merge_adapter(policy, place)
    return policy


def require_made_of(run: Path, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a policy from another place than the run's was, unless it is the same.

    Raises:
        UsageError: if it is not.
    """
    then = json.loads((start_of(run) / _ORIGIN).read_text())
    require_same_policy(run, then["policy"] == origin(policy, tokenizer)["policy"], policy)


def require_same_policy(run: Path, same: bool, policy: PreTrainedModel) -> None:
    """Raise UsageError unless it is the ``same``."""
    remedy = f"its weights are not those that {run} was made of: give the very same files (--policy)"
    require(same, "policy", policy.config.name_or_path or type(policy).__name__, remedy)


def merge_adapter(policy: PreTrainedModel, folder: Path) -> None:
    """Add a kept adapter to the policy's weights."""
    adapted = shared_copy(policy)
    adapted.load_adapter(str(folder))
    merge_into(policy, adapted)
