"""Tokens and texts: does the policy read and end its texts as the training assumes?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ippo.doctor.finding import Finding, grade, report, worst
from ippo.rollout.end_tokens import EndTokens, declared_ends, end_tokens, turn_end


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
    """Responses close with an end token: what never ends is never rewarded.

    Wrong when fewer than one response in ten ends, a warning when fewer than seven, or when the chat template ends a
    turn with something else than an end token, or demonstrations close with a token that the model does not end with.
    """
    endless = sum(not ended for ended in finished) / len(finished)
    state = grade(endless, warning=0.3, wrong=0.9)
    ends, own = end_tokens(policy, tokenizer), declared_ends(policy)
    names = " or ".join(_names(tokenizer, ends.ids))
    found = f"{1 - endless:.0%} of {len(finished)} responses end with {names} within {max_new_tokens} tokens"
    remedy = "a longer warm start (sft.steps), or raise sampling.max_new_tokens if answers are cut"
    if said := _unlike_the_template(own | {tokenizer.eos_token_id}, tokenizer) or _unlike_the_model(
        own, ends, tokenizer
    ):
        state, remedy = worst(state, "warning"), said
    return report("end of sequence", state, found, remedy)


def _unlike_the_template(declared: set[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """What to do where the chat template ends a turn with something else than what model and tokenizer declare."""
    turn = turn_end(tokenizer)
    if not tokenizer.chat_template or turn in declared:
        return ""
    if turn is None:
        return "the chat template ends a turn with no special token: let it write the tokenizer's eos token there"
    (name,) = _names(tokenizer, [turn])
    return (
        f"the chat template ends a turn with {name}: add {turn} to eos_token_id in the policy's generation_config.json"
    )


def _unlike_the_model(own: set[int], ends: EndTokens, tokenizer: PreTrainedTokenizerBase) -> str:
    """What to do where demonstrations close with a token that the model does not end its texts with."""
    if not own or ends.closing in own:
        return ""
    names = ", ".join(_names(tokenizer, sorted(own)))
    return f"the model ends its texts with {names}: set tokenizer.eos_token to it in the policy's directory"


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


def _names(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> list[str]:
    return [repr(tokenizer.convert_ids_to_tokens(one)) for one in ids]
