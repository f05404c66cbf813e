"""The policy's weights as a file, for an engine in another process."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ippo.distributed import gather_texts, rank, total_of, whole
from ippo.rollout.adapters import Merged, merged_weights
from ippo.rollout.sharded import in_parts

NAME = "model.safetensors"


def folder_in_memory() -> tempfile.TemporaryDirectory[str]:
    """A directory of this process's own, in memory where the system has such (``/dev/shm``), gone with its holder."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(prefix="ippo-", dir=memory if memory.is_dir() else None)


def of_this_machine(own: Path, policy: Any) -> tuple[Path, bool]:
    """The directory that an engine of this rank reads, and whether this rank writes it. Where ranks hold parts of the
    policy those of a machine share one: put together it may be as large as all that they hold.

    Args:
        own: this rank's directory.
        policy: a causal language model.
    """
    if not in_parts(policy):
        return own, True
    local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))
    return Path(gather_texts([str(own)], policy.device)[rank() - local]), local == 0


def wait_for_the_writer(policy: Any) -> None:
    """Where ranks share a file, none reads it before it is there, and none writes the next before all have read."""
    if in_parts(policy):
        total_of(0, policy.device)


@torch.no_grad()
def write_weights(policy: Any, folder: Path, here: bool = True) -> Path:
    """All weights under the names of the plain model: adapters merged, and a tied head written out, without which an
    engine keeps its old one. Of ranks that hold parts of the policy all must call.

    Args:
        policy: a causal language model.
        folder: where the file goes.
        here: whether this process writes it; another takes part in gathering, one tensor at a time.

    Returns:
        The file.
    """
    weights: dict[str, Tensor] = {}
    for name, value in _plain_weights(policy):
        if here:
            weights[name] = value.detach().to("cpu").contiguous()
    seen: set[int] = set()
    for name, value in weights.items():
        if value.data_ptr() in seen:  # of one storage, which the format does not know
            weights[name] = value.clone()
        seen.add(value.data_ptr())
    if here:
        save_file(weights, folder / NAME, metadata={"format": "pt"})
    return folder / NAME


def _plain_weights(policy: Any) -> Iterator[tuple[str, Tensor]]:
    """Each weight of the plain model with its name, whole."""
    with Merged()(policy):  # but where ranks hold parts of it
        names = []
        for name, value in policy.state_dict().items():
            plain = name.replace(".base_layer.", ".")
            if ".lora_" not in name and not (plain != name and plain.endswith(".weight")):
                names.append(plain)
                yield plain, whole(value)
        head = policy.get_output_embeddings()
        if head is not None and not any(name.endswith("lm_head.weight") for name in names):
            yield "lm_head.weight", whole(head.weight)
        if in_parts(policy):
            yield from merged_weights(policy)


def write_model(policy: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, here: bool = True) -> None:
    """A whole Hugging Face directory: configuration, tokenizer and weights (see :func:`write_weights`)."""
    if here:
        policy.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    write_weights(policy, folder, here)
