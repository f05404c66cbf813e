"""Prompts as token ids."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ippo.errors import require


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], argument: str) -> list[list[int]]:
    """Token ids of each prompt.

    Args:
        tokenizer: the policy's tokenizer.
        prompts: texts.
        argument: what to call them in an error.

    Raises:
        UsageError: if one has no token: a response has to follow on something.
    """
    encoded = tokenizer(list(prompts))["input_ids"]
    empty = next((place for place, ids in enumerate(encoded) if not ids), None)
    remedy = "it has no token, and a response has to follow on something: remove it"
    require(empty is None, f"{argument}[{empty}]", prompts[empty or 0], remedy)
    return encoded
