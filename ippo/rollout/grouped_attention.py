"""Attention of one new token a row, without copies of what its heads share.

Where several query heads share a key and value head, ``transformers`` repeats keys and values for each of them before
the kernel, in every layer and step of a compiled program: the whole cache is written out anew for every token. One
token has one query a head, so the heads of a group can stand where a kernel expects the tokens of a text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "ippo_grouped"


def grouped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """What ``transformers``' own ``sdpa`` gives, in the shapes of its attention functions.

    Args:
        module: the attention layer; ``num_key_value_groups`` says how many heads share one.
        query: [n, h, t, d].
        key, value: [n, h / groups, l, d].
        attention_mask: [n, 1, t, l], or None.
        options: of the layer: ``scaling``, and others, with which its own function is called.

    Returns:
        [n, t, h, d], and None.
    """
    count, heads, tokens, _ = query.shape
    plain = set(options) <= {"scaling", "dropout", "is_causal", "sliding_window", "position_ids", "use_cache"}
    one_mask = attention_mask is not None and attention_mask.dim() == 4 and attention_mask.shape[1] == 1
    groups = heads // key.shape[1]
    if tokens != 1 or groups == 1 or not plain or not one_mask or options.get("dropout"):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    packed = query.reshape(count, key.shape[1], groups, query.shape[-1])
    found = scaled_dot_product_attention(packed, key, value, attn_mask=attention_mask, scale=options.get("scaling"))
    return found.reshape(count, heads, 1, value.shape[-1]).transpose(1, 2).contiguous(), None


@contextmanager
def grouped(policy: Any) -> Iterator[None]:
    """While it lasts, a policy whose attention is ``sdpa`` decodes by :func:`grouped_attention`."""
    if policy.config._attn_implementation != "sdpa":
        yield
        return
    policy.set_attn_implementation(NAME)
    try:
        yield
    finally:
        policy.set_attn_implementation("sdpa")


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
