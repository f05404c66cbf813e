"""Tiny language models that FSDP2 spreads over the ranks, block by block, with axes that no number of ranks divides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from architectures import OPTIONS, with_lora
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig, AutoModelForCausalLM

ODD: dict[str, Any] = {"hidden_size": 33, "intermediate_size": 47, "num_attention_heads": 3, "num_key_value_heads": 1}
ODD_GPT2: dict[str, Any] = {"n_embd": 33, "n_head": 3, "n_inner": 47}


def odd(name: str, tied: bool = True, **further: Any) -> Any:
    """Of one of the architectures, in evaluation mode and with no parameter of 0 or 1; further options are the
    configuration's."""
    torch.manual_seed(0)
    options = {**OPTIONS[name], **(ODD_GPT2 if name == "gpt2" else ODD), "tie_word_embeddings": tied, **further}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def checkpointed() -> Any:
    model = odd("llama")
    model.gradient_checkpointing_enable()
    return model


def in_pieces() -> Any:
    """Of which a pass computes at most four rows' logits at a time: ranks with other batches make other cuts."""
    model = odd("llama")
    model.logits_at_a_time = 4 * model.config.vocab_size
    return model


MODELS: dict[str, Callable[[], Any]] = {
    "llama, tied": lambda: odd("llama"),
    "llama, untied": lambda: odd("llama", tied=False),
    "llama, checkpointed": checkpointed,
    "llama, logits in pieces": in_pieces,
    "llama, LoRA": lambda: with_lora(odd("llama")),
    "gemma2": lambda: odd("gemma2"),
    "gpt2": lambda: odd("gpt2"),
}


def by_block(model: Any, **options: Any) -> Any:
    """The model, each block gathered by itself, and what is outside of them together."""
    mesh = options.pop("mesh", None) or init_device_mesh("cpu", (dist.get_world_size(),))
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    for block in max(lists, key=len):
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)
