"""Tokens and texts: does the policy read and end its texts as the training assumes?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ippo.doctor.finding import Finding, grade, report


def vocabulary(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Finding:
    """Every token has an embedding, and padding can stand anywhere because masks tell it from text."""
    embeddings: Any = policy.get_input_embeddings()
    rows, tokens = embeddings.weight.shape[0], len(tokenizer)
    same = tokenizer.pad_token_id == tokenizer.eos_token_id
    padding = f"pad {tokenizer.pad_token!r}{' (also eos: masks tell them apart)' if same else ''}"
    found = f"{tokens} tokens, {rows} embeddings, {padding}"
    remedy = "policy.resize_token_embeddings(len(tokenizer)), or take the tokenizer that belongs to this model"
    return report("vocabulary", "ok" if tokens <= rows else "wrong", found, remedy)


def ending(
    finished: Sequence[bool], policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int
) -> Finding:
    """Responses close with the tokenizer's end-of-sequence token: what never ends is never rewarded.

    Wrong when fewer than one response in ten ends, a warning when fewer than seven.
    """
    endless = sum(not ended for ended in finished) / len(finished)
    own = _ids(policy.config.eos_token_id) | _ids(getattr(policy.generation_config, "eos_token_id", None))
    eos = tokenizer.eos_token
    found = f"{1 - endless:.0%} of {len(finished)} responses end with {eos!r} within {max_new_tokens} tokens"
    state = grade(endless, warning=0.3, wrong=0.9)
    if own and tokenizer.eos_token_id not in own:
        names = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(sorted(own))))
        remedy = f"the model ends its texts with {names}: set tokenizer.eos_token to it in the policy's directory"
        return Finding("end of sequence", "warning" if state == "ok" else state, found, remedy)
    remedy = "a longer warm start (sft.steps), or raise sampling.max_new_tokens if answers are cut"
    return report("end of sequence", state, found, remedy)


def room(lengths: Sequence[int], max_new_tokens: int) -> Finding:
    """Gold solutions fit in what the policy may write. A warning when one in twenty does not, wrong when half do not.

    Args:
        lengths: tokens of each gold solution, the end-of-sequence token included.
        max_new_tokens: of the sampling.
    """
    longer = sum(length > max_new_tokens for length in lengths) / len(lengths)
    found = f"gold solutions: up to {max(lengths)} tokens, {longer:.0%} above max_new_tokens = {max_new_tokens}"
    state = grade(longer, warning=0.05, wrong=0.5)
    return report("room to answer", state, found, f"--sampling.max_new_tokens {max(lengths)}")


def prompts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Finding:
    """Prompts begin and end as the model knows them: no second beginning, no end before the response, and the chat
    template where there is one."""
    ids = tokenizer(list(texts))["input_ids"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and any(row[:2] == [bos, bos] for row in ids):
        remedy = f"leave {tokenizer.bos_token!r} out of the task's prompts: the tokenizer adds it"
        return Finding("prompts", "wrong", f"they begin with {tokenizer.bos_token!r} twice", remedy)
    if any(row and row[-1] == eos for row in ids):
        remedy = "set add_eos_token to false in the tokenizer's configuration"
        return Finding("prompts", "wrong", f"they close with {tokenizer.eos_token!r} before the response", remedy)
    if tokenizer.chat_template is None:
        return Finding("prompts", "ok", "plain text; the tokenizer has no chat template")
    if any(token in text for text in texts[:1] for token in tokenizer.all_special_tokens):
        return Finding("prompts", "ok", "they follow a chat template")
    found = "plain text, but the tokenizer has a chat template: an instruct model meets prompts unlike its training"
    remedy = "write the task's prompts with tokenizer.apply_chat_template, or warm-start long enough (sft.steps)"
    return Finding("prompts", "warning", found, remedy)


def _ids(value: int | list[int] | None) -> set[int]:
    if value is None:
        return set()
    return set(value) if isinstance(value, list) else {value}
