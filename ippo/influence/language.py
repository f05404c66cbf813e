"""The loss of a causal language model, one number a row: what most projects score and what most directions are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ippo.errors import require
from ippo.functional import sft_loss, token_logprobs

IGNORED = -100  # the label that Hugging Face's collators give to tokens without a loss


def causal_lm_losses(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The mean negative log-likelihood of each row's tokens, as a tokenizer or a collator batches them.

    Args:
        model: a Hugging Face causal language model.
        batch: ``input_ids`` [n, t]; ``attention_mask`` [n, t] where rows are padded, on either side; ``labels`` [n, t]
            where not every token counts, with -100 for those that do not.

    Returns:
        [n], in nats a token; 0 for a row without a counted token.

    Raises:
        UsageError: if the batch has no ``input_ids``.
    """
    require("input_ids" in batch, "batch", sorted(batch), "it needs input_ids, as a tokenizer returns with tensors")
    ids: Tensor = batch["input_ids"]
    mask: Tensor = batch["attention_mask"] if "attention_mask" in batch else ids.new_ones(ids.shape)
    labels: Tensor = batch.get("labels", ids)
    counted = (mask[:, 1:] > 0) & (mask[:, :-1] > 0) & (labels[:, 1:] != IGNORED)  # after padding nothing is predicted
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # one row each: a broadcast row would hide the episodes' gradients
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, :-1]
    return sft_loss(token_logprobs(logits, ids[:, 1:]), counted)
