"""Whether ``transformers`` generates what the model reads."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig

from ippo.errors import require
from ippo.modes import uncompiled
from ippo.rollout.engines.hf import sole_config
from ippo.rollout.soundness import TOKENS, differ, few_tokens, read

_NEW = 3


@torch.no_grad()
def require_same_when_generated(policy: Any) -> None:
    """Make sure that ``generate`` draws from the distributions that the policy gives when it reads the text.

    Raises:
        UsageError: if it does not.
    """
    text, mask = few_tokens(policy)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=_NEW,
        return_dict_in_generate=True,
        output_logits=True,
        pad_token_id=0,
    )
    with sole_config(config, policy), uncompiled():
        drawn = policy.generate(input_ids=text, attention_mask=mask)
    generated = torch.stack(drawn.logits, 1)
    whole = drawn.sequences[:, : TOKENS + _NEW]
    again = read(policy, whole, torch.ones_like(whole))[:, TOKENS - 1 : -1]
    remedy = "transformers generates from other probabilities than it reads with: sample by --engine vllm"
    require(not differ(again, generated), "policy", type(policy).__name__, remedy)
