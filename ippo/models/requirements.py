"""What a policy and its tokenizer must be, checked before any work starts."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from ippo.errors import require
from ippo.rollout.engines.hf import require_unwrapped


def require_language_model(policy: Any, name: str | None = None) -> None:
    """Make sure that ``policy`` is a causal language model by itself.

    Args:
        policy: a model.
        name: what the user called it.

    Raises:
        UsageError: if it is wrapped by PEFT, has no language head, or is an encoder with a decoder.
    """
    require_unwrapped(policy)
    adapted = getattr(policy, "_hf_peft_config_loaded", False)
    remedy = "it has adapters already: merge them into its weights first; --layout lora trains adapters of its own"
    require(not adapted, "policy", name or type(policy).__name__, remedy)
    name = name or type(policy).__name__
    remedy = "it reads a text with its encoder and writes with its decoder: give a model of a decoder alone"
    require(not policy.config.is_encoder_decoder, "policy", name, remedy)
    remedy = "it has no language head: give a causal language model, as AutoModelForCausalLM loads it"
    require(policy.can_generate(), "policy", name, remedy)


def require_tokens(policy: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make sure that rows can be padded and every token has an embedding.

    Raises:
        UsageError: if there is no pad token, or it or another token is beyond the embeddings.
    """
    rows, pad = policy.get_input_embeddings().weight.shape[0], tokenizer.pad_token_id
    require(pad is not None, "tokenizer.pad_token", None, "set tokenizer.pad_token (eos will do)")
    beyond = f"its id is {pad}, and the policy has {rows} embeddings"
    remedy = f"{beyond}: tokenizer.pad_token = tokenizer.eos_token will do, masks tell padding from text"
    require(pad < rows, "tokenizer.pad_token", tokenizer.pad_token, remedy)
    tokens = max(tokenizer.get_vocab().values()) + 1
    remedy = f"the policy has {rows} embeddings: give the tokenizer it was trained with, or resize_token_embeddings"
    require(tokens <= rows, "tokenizer", f"{tokens} tokens", remedy)
