"""The loss of a causal language model, one number a row: what most projects score and what most directions are."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ippo.errors import require
from ippo.functional import sft_loss, token_logprobs

IGNORED = -100  # the label that Hugging Face's collators give to tokens without a loss


def causal_lm_losses(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The mean negative log-likelihood of each row's tokens, as a tokenizer or a collator batches them.

    Args:
        model: a Hugging Face causal language model.
        batch: ``input_ids`` [n, t]; ``attention_mask`` [n, t] where rows are padded, on either side; ``labels`` [n, t],
            what is to be predicted where that is not the next token, with -100 for what does not count;
            ``position_ids`` [n, t], e.g. of packed rows, where they are not the places after the padding.

    Returns:
        [n], in nats a token; 0 for a row without a counted token.

    Raises:
        UsageError: if the batch has no ``input_ids``, or mask, labels or positions of another shape.
    """
    require("input_ids" in batch, "batch", sorted(batch), "it needs input_ids, as a tokenizer returns with tensors")
    ids: Tensor = batch["input_ids"]
    for name in ("attention_mask", "labels", "position_ids"):
        shape = tuple(batch[name].shape) if batch.get(name) is not None else ids.shape
        require(shape == ids.shape, f"batch[{name!r}]", f"of shape {shape}", f"input_ids have {tuple(ids.shape)}")
    mask = ids.new_ones(ids.shape) if batch.get("attention_mask") is None else batch["attention_mask"]
    labels = ids if batch.get("labels") is None else batch["labels"]
    places: dict[str, Any] = {"attention_mask": mask, "use_cache": False}
    if batch.get("position_ids") is not None:
        places["position_ids"] = batch["position_ids"]
        if batch.get("attention_mask") is None:  # the model finds packed rows by their positions, or not: by itself
            places = {"position_ids": places["position_ids"]}
    elif _takes_positions(model):  # one row each: a broadcast row would hide the episodes' gradients
        places["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0) + _first_position(model)
    else:  # it counts the places itself, padding too
        ids, mask, labels = _padded_on_the_right(mask, ids, mask, labels)
        places["attention_mask"] = mask
    counted = (mask[:, 1:] > 0) & (mask[:, :-1] > 0) & (labels[:, 1:] != IGNORED)  # after padding nothing is predicted
    logits = model(input_ids=ids, **places).logits[:, :-1]
    targets = labels[:, 1:].masked_fill(labels[:, 1:] == IGNORED, 0)
    return sft_loss(token_logprobs(logits, targets), counted)


def _takes_positions(model: Any) -> bool:
    """Whether the model can be told its positions; a compiled or PEFT-wrapped one hands them on."""
    model = getattr(model, "_orig_mod", model)
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "position_ids" in inspect.signature(model.forward).parameters


def _first_position(model: nn.Module) -> int:
    """Of a table of positions that has a row for padding, as RoBERTa's and its like, the row after it; else 0."""
    tables = [part for name, part in model.named_modules() if name.endswith("position_embeddings")]
    padding = getattr(tables[0], "padding_idx", None) if tables else None
    return 0 if padding is None else padding + 1


def _padded_on_the_right(mask: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
    """[n, t] each, rolled so that every row begins with its first token."""
    starts = (mask > 0).int().argmax(1, keepdim=True)
    places = (torch.arange(mask.shape[1], device=mask.device) + starts) % mask.shape[1]
    return tuple(one.gather(1, places) for one in rows)
