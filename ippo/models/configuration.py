"""What a model's configuration says of its text, under whatever name and however deep inside."""

from __future__ import annotations

from typing import Any

_LIMITS = ("max_position_embeddings", "max_seq_len")


def text_config(policy: Any) -> Any:
    """The part of a model's configuration that is about text; of a model of text alone, all of it."""
    return policy.config.get_text_config(decoder=True)


def context_length(policy: Any) -> int | None:
    """The longest sequence that a causal language model takes, in tokens; None where nothing limits it, as in a
    recurrent model or one with ALiBi.

    With ``longrope`` (Phi-3) it is the original length: in a batch with a longer row all rows are turned by other
    frequencies, so that what the model says of a text would depend on its neighbours, and PPO's ratios on the batch.
    Dynamic NTK, which does the same, begins beyond ``max_position_embeddings``.
    """
    config = text_config(policy)
    limits = [limit for name in _LIMITS if (limit := getattr(config, name, None)) is not None][:1]
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(one for one in rope.values() if isinstance(one, dict))]  # some models have one a kind of layer
    limits += [one["original_max_position_embeddings"] for one in kinds if one.get("rope_type") == "longrope"]
    return min(limits, default=None)


def state_size(policy: Any) -> int:
    """Numbers in a hidden state as the trunk returns it. OPT's smallest models project it to another width."""
    config = text_config(policy)
    return getattr(config, "word_embed_proj_dim", None) or config.hidden_size


def freeze_all_but_text(policy: Any) -> None:
    """Freeze what a multimodal model has beside its text path, such as a vision tower: text gives it no gradient."""
    if text_config(policy) is policy.config:
        return
    path = (policy.get_decoder(), policy.get_input_embeddings(), policy.get_output_embeddings())
    used = {id(parameter) for part in path if part is not None for parameter in part.parameters()}
    for parameter in policy.parameters():
        if id(parameter) not in used:
            parameter.requires_grad_(False)
