"""What a causal language model's head reads: the trunk, and whether the two can be run apart."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from transformers import PreTrainedModel

from ippo.errors import require
from ippo.modes import evaluation_mode
from ippo.rollout.sharded import inside

_tried: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""For each policy, whether its head and its trunk, run apart, make the logits that they make together."""


def trunk_of(policy: Any) -> PreTrainedModel:
    """The model inside a causal language model whose ``last_hidden_state`` its head reads.

    ``base_model`` is not it everywhere: OPT's and BART's heads call the decoder inside of it, which ``get_decoder``
    names; for other models it mostly names the same as ``base_model``.

    Raises:
        UsageError: if there is none.
    """
    candidates = (policy.get_decoder(), policy.base_model, getattr(policy, "model", None))
    trunks = [one for one in candidates if isinstance(one, PreTrainedModel) and one is not policy]
    require(
        bool(trunks), "policy", type(policy).__name__, "it has no trunk below its head: give a causal language model"
    )
    return trunks[0]


def head_alone(policy: Any, answer: Any, ids: Tensor) -> Tensor:
    """[n, t, v] logits that a policy makes of its trunk's answer.

    Its own forward runs, with that answer given, because some models cap, scale or shift their logits after the
    projection. Libraries' fused losses know projections alone, and have no forward derivative: where that is enough,
    :mod:`ippo.models.projection`.
    """
    trunk: Any = trunk_of(policy)
    trunk.forward = lambda *_, **__: answer
    try:
        return policy(input_ids=ids, use_cache=False).logits
    finally:
        del trunk.forward  # the class's own again


def with_states(answer: Any, states: Tensor) -> Any:
    """The answer of a trunk for ``states`` alone."""
    return type(answer)(last_hidden_state=states)


@torch.no_grad()
def runs_apart(policy: Any, inputs: dict[str, Any]) -> bool:
    """Whether :func:`head_alone` makes the policy's logits. Tried once a policy; if not, it is said, with the cost.

    Args:
        policy: a causal language model.
        inputs: its arguments for a few rows of a few tokens.
    """
    if policy not in _tried:
        with evaluation_mode(policy):
            _tried[policy] = _agree(policy, inputs)
        if not _tried[policy]:
            rank_zero_warn(
                f"{type(policy).__name__}: its head cannot be run apart from its trunk, so the logits of a whole "
                "micro-batch are held at a time. If memory is short, lower ppo.micro_batch_tokens."
            )
    return _tried[policy]


def _agree(policy: Any, inputs: dict[str, Any]) -> bool:
    whole = policy(**inputs).logits
    try:
        answer: Any = inside(policy, trunk_of(policy), **inputs)
        parts = zip(answer.last_hidden_state.split(2, 1), inputs["input_ids"].split(2, 1), strict=True)
        found = torch.cat([head_alone(policy, with_states(answer, states), ids) for states, ids in parts], 1)
    except Exception:  # whatever it says: its head needs more than these states
        return False
    precise = whole.dtype in (torch.float32, torch.float64)
    spread = (whole - whole.mean(-1, keepdim=True)).abs().max()
    same = found.shape == whole.shape and (found - whole).abs().max() <= (1e-4 if precise else 0.05) * spread
    return bool(same)
