"""The samples of one prompt share its keys and values: the prompt is read once."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig

from ippo.modes import evaluation_mode, uncompiled
from ippo.rollout.soundness import TOKENS, differ, few_tokens

_can: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def distinct(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where the different prompts of a batch are.

    Args:
        ids, mask: [n, s] token ids, and bool, True on the prompt.

    Returns:
        [m] a row of each, in order, and [n] which of these every row is.

    Example:
        >>> distinct(torch.tensor([[5, 6], [0, 6], [5, 6]]), torch.tensor([[1, 1], [0, 1], [1, 1]]).bool())
        (tensor([0, 1]), tensor([0, 1, 0]))
    """
    places: dict[tuple[int, ...], int] = {}
    firsts: list[int] = []
    which: list[int] = []
    for row, key in enumerate(map(tuple, torch.where(mask, ids, -1).tolist())):
        if key not in places:
            places[key] = len(firsts)
            firsts.append(row)
        which.append(places[key])
    return torch.tensor(firsts, device=ids.device), torch.tensor(which, device=ids.device)


def shared_prefill(policy: Any, ids: Tensor, mask: Tensor) -> DynamicCache | None:
    """Keys and values of all but the last token of each prompt, for ``generate`` to go on from.

    None where it would not pay, because fewer than half of the prompts repeat another one, and where the model does not
    go on from such a cache as it reads the whole text; that is tried once a model.

    Args:
        policy: a causal language model, which does not mind padding on the left.
        ids, mask: [n, s] token ids, and bool, True on the prompt.
    """
    if ids.shape[1] < 2:
        return None
    rows, which = distinct(ids, mask)
    if 2 * len(rows) > len(ids) or not _goes_on(policy):
        return None
    return _read_once(policy, ids[rows], mask[rows], which)


def _read_once(policy: Any, ids: Tensor, mask: Tensor, which: Tensor) -> DynamicCache:
    cache = DynamicCache(config=policy.config)
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    policy.base_model(  # without the head: nothing is drawn yet
        input_ids=ids[:, :-1],
        attention_mask=mask[:, :-1].long(),
        position_ids=positions[:, :-1],
        past_key_values=cache,
        use_cache=True,
    )
    cache.batch_select_indices(which)
    return cache


@torch.no_grad()
def _goes_on(policy: Any) -> bool:
    """Whether ``generate`` draws from the same numbers when the prompts were read before it. In full precision, since
    whether it does is no matter of rounding."""
    if policy not in _can:
        text, mask = few_tokens(policy)
        which = torch.tensor([0, 1, 0, 1], device=text.device)  # a cache may keep what it cannot give to more rows
        config = GenerationConfig(
            do_sample=False, max_new_tokens=3, return_dict_in_generate=True, output_logits=True, pad_token_id=0
        )
        with evaluation_mode(policy), torch.autocast(policy.device.type, enabled=False), uncompiled():
            try:
                cache = _read_once(policy, text, mask.bool(), which)
                text, mask = text[which], mask[which]
                found = [
                    torch.stack(policy.generate(text, config, attention_mask=mask, **more).logits, 1).to(policy.dtype)
                    for more in ({}, {"past_key_values": cache})
                ]
                _can[policy] = cache.get_seq_length() >= TOKENS and not differ(*found)
            except Exception:  # whatever it says: it has another kind of cache, or takes none
                _can[policy] = False
    return _can[policy]
