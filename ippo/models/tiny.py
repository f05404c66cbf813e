"""A real causal language model small enough for a laptop, and a tokenizer trained on the task's own text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

EOS, PAD = "<eos>", "<pad>"

# Numbers, words with the space before them, and every other character by itself: "8 pens" is "8", " pens", and a
# number of up to three digits can become one token, the same one in the question and in the solution.
_PIECES = r"[0-9]{1,3}| ?\p{L}+|[\s\S]"


@dataclass(frozen=True)
class TinyOptions:
    """Shape of the embedded policy.

    Args:
        hidden_size, layers, heads, intermediate_size: as in ``LlamaConfig``; grouped-query attention with half the
            heads.
        vocab_size: at most this many tokens, 256 of them the bytes that make the tokenizer serve any text.
        context: longest prompt and response together, in tokens.
    """

    hidden_size: int = 64
    layers: int = 3
    heads: int = 4
    intermediate_size: int = 192
    vocab_size: int = 512
    context: int = 256


def train_tokenizer(texts: Iterable[str], vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on ``texts``; any other text falls back to bytes, so it encodes everything losslessly.

    Example:
        >>> tokenizer = train_tokenizer(["Ava has 8 pens"] * 9)
        >>> tokenizer.decode(tokenizer("Ça coûte 8 €")["input_ids"])
        'Ça coûte 8 €'
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, padding_side="left")


def tiny_llama(tokenizer: PreTrainedTokenizerFast, options: TinyOptions = TinyOptions()) -> LlamaForCausalLM:
    """A randomly initialised Llama for ``tokenizer``: under one million parameters at the default shape."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden_size,
        intermediate_size=options.intermediate_size,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=max(1, options.heads // 2),
        max_position_embeddings=options.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)
