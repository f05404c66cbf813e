"""Tiny random models of the causal language model types that transformers has, and a tokenizer that fits them all."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

TYPES: tuple[str, ...] = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz+-=#?. "
VOCABULARY = 48  # four special tokens, the letters, and one more than a tokenizer knows

_WIDTHS = ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "embedding_size", "lru_width", "emb_dim")
_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads", "decoder_attention_heads", "encoder_attention_heads")
_INNER = ("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "intermediate_size_mlp")
_LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_EXPERTS_A_TOKEN = ("num_experts_per_tok", "moe_topk", "moe_k")
_EXPERT_INNER = ("moe_intermediate_size", "shared_expert_intermediate_size")
_DROPOUTS = (
    *("attn_pdrop", "embd_pdrop", "resid_pdrop", "attention_dropout", "hidden_dropout", "dropout", "layerdrop"),
    *("activation_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob"),
)

SIZES: dict[str, Any] = {
    **dict.fromkeys(_WIDTHS, 32),
    **dict.fromkeys(_DEPTHS, 2),
    **dict.fromkeys(_HEADS, 4),
    **dict.fromkeys((*_INNER, "attention_hidden_size"), 48),
    **dict.fromkeys(_LENGTHS, 64),
    **dict.fromkeys(_EXPERTS, 4),
    **dict.fromkeys(_EXPERTS_A_TOKEN, 2),
    **dict.fromkeys(_EXPERT_INNER, 24),
    **dict.fromkeys(_DROPOUTS, 0.0),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    "encoder_layers": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 8,
    "query_pre_attn_scalar": 8,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "state_size": 8,
    "mamba_d_state": 8,
    "mamba_d_ssm": 64,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_headdim": 8,
    "n_mamba_heads": 2,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
    "chunk_size": 8,
    "conv_kernel": 4,
    "time_step_rank": 4,
    "rotary_dim": 4,
    "rotary_pct": 0.5,
    "partial_rotary_factor": 0.5,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "sliding_window": 4,
    "attention_window": [4, 4],
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "is_decoder": True,  # what makes a BERT causal
}
"""A size for every name that configurations have for one; a type takes those that it knows."""

_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
_LATENT = {"num_key_value_heads": 4, "head_dim": 4}  # attention with compressed keys and values
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "deepseek_v32", "youtu", "minicpm3", "axk1", "axk2"), _LATENT),
    **dict.fromkeys(("glm4_moe_lite", "glm_moe_dsa"), _LATENT),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen4_exp_text", "granitemoehybrid"), _HYBRID),
    "bailing_hybrid": {**_LATENT, **_HYBRID, "num_experts": 8, "n_group": 1},
    "bamba": {"mamba_n_groups": 1, "attn_layer_indices": [1]},
    "cpmant": {"dim_head": 8, "dim_ff": 48},
    "ctrl": {"dff": 48},
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots3_note_text": {
        "num_key_value_heads": 4,
        "index_head_dim": 8,
        "index_n_heads": 2,
        "index_topk": 64,
        "shared_experts_intermediate_size": 24,
    },
    "falcon": {"new_decoder_architecture": False, "alibi": False},
    "gemma3n_text": {"num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "jamba": {
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_dt_rank": 4,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "kimi_linear": {**_HYBRID, "linear_head_dim": 8, "linear_num_heads": 4, "num_key_value_heads": 4, "num_experts": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {**_LATENT, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 24, "zero_expert_num": 1},
    "mamba2": {"num_heads": 8, "expand": 2, "n_groups": 2, "chunk_size": 4},
    "moshi": {"sliding_window": 64},  # its cache has the window, its forward without one has not
    "phi3": {"sliding_window": None},
    "qwen2_moe": {"decoder_sparse_step": 1},
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": 4},
    "roc_bert": {
        "pronunciation_vocab_size": 48,
        "shape_vocab_size": 48,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "rwkv": {"attention_hidden_size": 32},
    "xlm": {"causal": True},
    "xlnet": {"d_inner": 48},
    "xlstm": {"num_blocks": 2, "hidden_size": 64, "qk_dim_factor": 1.0, "chunk_size": 64},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "kv_channels": 8,
        "num_query_groups": 4,
        "adapter_rank": 4,
        "mamba_ngroups": 1,
        "num_mem_blocks": 1,
        "mamba_headdim": 16,
        "n_mamba_heads": 4,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}
"""What a type needs besides."""


def tokenizer() -> PreTrainedTokenizerFast:
    """A token a letter."""
    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    vocabulary = {text: index for index, text in enumerate([*special, *LETTERS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def config_of(kind: str) -> PreTrainedConfig:
    """A configuration of the type ``kind`` with every size as small as it goes."""
    config_type = CONFIG_MAPPING[kind]
    try:
        known = set(config_type().to_dict())
    except Exception:  # its defaults do not go together: then it says itself which names it does not know
        known = set(SIZES)
    config = config_type(**{**{name: size for name, size in SIZES.items() if name in known}, **OWN.get(kind, {})})
    layer_types = getattr(config, "layer_types", None)
    if layer_types and len(layer_types) > config.num_hidden_layers:
        rest = layer_types[config.num_hidden_layers :]  # a hybrid's attention often comes last
        config.layer_types = [*layer_types[: config.num_hidden_layers - 1], rest[-1] if rest else layer_types[-1]]
    return config


def tiny_model(kind: str, seed: int = 0) -> Any:
    """A model of the type ``kind``, whose weights are large enough that its gradients say something.

    Raises:
        ValueError: if it is not tiny: the type has sizes by other names.
    """
    config = config_of(kind)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if size > 2_000_000:
        raise ValueError(f"{kind} has {size:,} parameters at the sizes given here")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in filter(lambda one: one.requires_grad, model.parameters()):  # not sinusoids
            parameter += torch.randn(parameter.shape, generator=generator) * (0.08 if parameter.dim() > 1 else 0.05)
    return model.eval()
