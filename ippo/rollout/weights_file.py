"""The policy's weights as a file, for an engine in another process."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase

from ippo.rollout.adapters import Merged

NAME = "model.safetensors"


def folder_in_memory() -> tempfile.TemporaryDirectory[str]:
    """A directory of this process's own, in memory where the system has such (``/dev/shm``), gone with its holder."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(prefix="ippo-", dir=memory if memory.is_dir() else None)


@torch.no_grad()
def write_weights(policy: Any, folder: Path) -> Path:
    """All weights under the names of the plain model: adapters merged, shards put together, and a tied head written
    out, without which an engine keeps its old one.

    Returns:
        The file.
    """
    weights: dict[str, Tensor] = {}
    with Merged()(policy):
        for name, value in policy.state_dict().items():
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            weights[name] = whole.detach().to("cpu").contiguous()
        head = policy.get_output_embeddings()
        if head is not None and not any(name.endswith("lm_head.weight") for name in weights):
            weights["lm_head.weight"] = head.weight.detach().to("cpu").contiguous()
    seen: set[int] = set()
    for name, value in weights.items():
        if value.data_ptr() in seen:  # of one storage, which the format does not know
            weights[name] = value.clone()
        seen.add(value.data_ptr())
    save_file(weights, folder / NAME, metadata={"format": "pt"})
    return folder / NAME


def write_model(policy: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """A whole Hugging Face directory: configuration, tokenizer and weights."""
    policy.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_weights(policy, folder)
