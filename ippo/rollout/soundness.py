"""What a model must not depend on: the padding around a text, and what follows.

Architectures differ in this, and nothing in their configuration says so; a few tokens show it.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ippo.errors import require
from ippo.modes import evaluation_mode, uncompiled

TOKENS, _PADS = 7, 3
_minds_left: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def minds_left_padding(model: Any) -> bool:
    """Whether padding before a text changes what a model makes of it, although it is masked: positions that are columns
    (BART's decoders), states that padding passes through (RWKV, RecurrentGemma). Tried once a model.

    Such a model samples prompts of one length at a time, and reads texts that are padded on the right.
    """
    if model not in _minds_left:
        text, mask = few_tokens(model)
        pads = torch.zeros_like(text[:, :_PADS])
        padded, hidden = torch.cat([pads, text], 1), torch.cat([pads, mask], 1)
        _minds_left[model] = differ(read(model, text, mask), read(model, padded, hidden)[:, _PADS:])
    return _minds_left[model]


def minds_no_mask(model: Any) -> bool:
    """Whether tokens after a text change what a model makes of it, if nothing says that they are padding: encoders, and
    models that take a missing mask for something else."""
    text, mask = few_tokens(model)
    longer = torch.cat([text, text[:, :_PADS]], 1)
    with torch.autocast(text.device.type, enabled=False):
        return differ(read(model, text, mask), read(model, longer, None)[:, :TOKENS])


def require_causal(policy: Any) -> None:
    """Make sure that what a policy says of a token does not depend on what follows it, padding or not.

    Raises:
        UsageError: if it does.
    """
    text, mask = few_tokens(policy)
    alone, name = read(policy, text, mask), type(policy).__name__
    longer, ones = torch.cat([text, text[:, :_PADS]], 1), torch.ones_like(mask[:, :_PADS])
    remedy = "what it says of a token depends on those that follow: give a causal model; is_decoder makes a BERT one"
    for following in (ones, torch.zeros_like(ones)):
        found = read(policy, longer, torch.cat([mask, following], 1))[:, :TOKENS]
        require(not differ(alone, found), "policy", name, remedy)
        remedy = "what it says of a text depends on masked padding after it: give a model of another architecture"


def few_tokens(model: Any) -> tuple[Tensor, Tensor]:
    """[2, t] some tokens, and their mask."""
    embeddings = model.get_input_embeddings().weight
    ids = (torch.arange(2 * TOKENS, device=embeddings.device).view(2, -1) * 3 + 4) % embeddings.shape[0]
    return ids, torch.ones_like(ids)


@torch.no_grad()
def read(model: Any, ids: Tensor, mask: Tensor | None) -> Tensor:
    """[2, t, ...] logits, or hidden states of a model without a head."""
    positions = ((torch.ones_like(ids) if mask is None else mask).cumsum(1) - 1).clamp(min=0)
    with evaluation_mode(model), uncompiled():
        found = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


def differ(first: Tensor, second: Tensor) -> bool:
    """By more than rounding; in half precision, where rounding may send a token to another expert, most tokens do."""
    spread = (first - first.mean(-1, keepdim=True)).abs().max()
    errors = (first - second).abs().amax((0, 2)) / spread
    return bool(errors.max() > 1e-3 if first.dtype in (torch.float32, torch.float64) else errors.median() > 0.25)
