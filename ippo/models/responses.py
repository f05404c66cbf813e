"""From a Hugging Face model and padded sequences to one number per response token."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ippo.functional import token_logprobs
from ippo.sequences import Sequences


def response_logits(policy: nn.Module, sequences: Sequences) -> Tensor:
    """[n, t, v] logits that predict each response token; the vocabulary projection of the prompt is never computed."""
    kept = sequences.response_ids.shape[1] + 1  # the token before the response predicts its first token
    return policy(**model_inputs(sequences), logits_to_keep=kept).logits[:, :-1]


def response_logprobs(policy: nn.Module, sequences: Sequences, temperature: float = 1.0) -> Tensor:
    """[n, t] float32 log-probabilities of the response tokens; padding holds numbers without meaning."""
    return token_logprobs(response_logits(policy, sequences), sequences.response_ids, temperature)


def model_inputs(sequences: Sequences) -> dict[str, Any]:
    """Arguments of a causal language model's forward. The cache is off: nothing is generated here."""
    return {
        "input_ids": sequences.input_ids,
        "attention_mask": sequences.attention_mask,
        "position_ids": sequences.position_ids,
        "use_cache": False,
    }
