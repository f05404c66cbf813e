"""Which tokens end a response."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ippo.errors import require
from ippo.rollout.sequences import Sequences


@dataclass(frozen=True)
class EndTokens:
    """The tokens that end a response, whichever of them it is.

    Args:
        ids: all of them, in ascending order.
        closing: the one that closes a demonstration.
    """

    ids: tuple[int, ...]
    closing: int

    def among(self, ids: Tensor) -> Tensor:
        """Bools of the shape of ``ids``: which of these tokens end a response."""
        return torch.isin(ids, torch.tensor(self.ids, device=ids.device))

    def until_first(self, ids: Tensor) -> Tensor:
        """[n, t] bool for [n, t] token ids: up to and including the first end. By position, because pad may be an end.

        Example:
            >>> EndTokens((1, 4), closing=4).until_first(torch.tensor([[7, 4, 1, 1], [7, 8, 9, 7]]))
            tensor([[ True,  True, False, False],
                    [ True,  True,  True,  True]])
        """
        end = self.among(ids).int()
        return (end.cumsum(1) - end) == 0

    def finished(self, sequences: Sequences, max_new_tokens: int) -> Tensor:
        """[n] bool: which responses have ended. What the engine says holds; of one that says nothing, the last token
        does.

        Raises:
            UsageError: if the engine says nothing and a response can be neither finished nor cut: it is shorter than
                allowed, and its last token ends nothing.
        """
        if sequences.finished is not None:
            return sequences.finished
        last = sequences.response_ids.gather(1, (sequences.lengths - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
        ended = self.among(last) & (sequences.lengths > 0)
        odd = ~ended & (sequences.lengths < max_new_tokens)
        length = int(sequences.lengths[odd][0]) if odd.any() else 0
        remedy = (
            f"it is shorter than max_new_tokens = {max_new_tokens} but closes with none of the end tokens "
            f"{', '.join(map(str, self.ids))}: let the engine leave the end token in, or return Sequences with finished"
        )
        require(not odd.any(), "engine", f"a response of {length} tokens", remedy)
        return ended


def end_tokens(policy: Any, tokenizer: PreTrainedTokenizerBase) -> EndTokens:
    """What the model, its generation config and its tokenizer declare, and what the chat template writes at the end of
    a turn. Chat models end a turn with another token than a text, and declare both or only one of them.

    Demonstrations close with what ends the template's turn where model or tokenizer know it as an end, else with the
    tokenizer's own: a base model whose tokenizer happens to have a template has never seen that token.

    Args:
        policy: a causal language model.
        tokenizer: its tokenizer.

    Raises:
        UsageError: if the tokenizer names no end token.
    """
    eos: Any = tokenizer.eos_token_id
    require(eos is not None, "tokenizer.eos_token", None, "set tokenizer.eos_token: responses must end")
    declared = declared_ends(policy) | {eos}
    turn = turn_end(tokenizer)
    return EndTokens(
        ids=tuple(sorted(declared if turn is None else declared | {turn})),
        closing=turn if turn is not None and turn in declared else eos,
    )


def declared_ends(policy: Any) -> set[int]:
    """The ids that a model's generation config and its configuration name."""
    places = (getattr(policy, "generation_config", None), policy.config, policy.config.get_text_config(decoder=True))
    return {one for place in places for one in _ids(getattr(place, "eos_token_id", None))}


def declare_turn_end(policy: Any, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Add what the chat template writes at the end of a turn to the model's generation config, so that demonstrations
    close with it and an exported model ends there. For prompts that are put into the template.

    Returns:
        The token, if the model and its tokenizer have not declared it themselves.
    """
    turn, declared = turn_end(tokenizer), declared_ends(policy) | {tokenizer.eos_token_id}
    if turn is None or turn in declared:
        return None
    policy.generation_config.eos_token_id = sorted({*declared, turn})
    return str(tokenizer.convert_ids_to_tokens(turn))


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the chat template writes right after an assistant's message, if it writes one."""
    if not tokenizer.chat_template:
        return None
    said = "Seventeen."
    messages = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": said}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception:  # a template may refuse whatever it likes; who asks for --chat is told so there
        return None
    before, _, after = text.rpartition(said)
    ids = tokenizer(after.strip(), add_special_tokens=False)["input_ids"] if before else []
    known = tokenizer.added_tokens_decoder
    return ids[0] if ids and ids[0] in known and known[ids[0]].special else None


def _ids(value: int | Iterable[int] | None) -> set[int]:
    """One id, several or none as a set; negative ones stand for none."""
    several = [value] if isinstance(value, int) else list(value or ())
    return {int(one) for one in several if one >= 0}
