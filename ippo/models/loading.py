"""Find a policy and its tokenizer by name: the embedded one, a local path, or a hub id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ippo.errors import UsageError, require
from ippo.models.tiny import TinyOptions, tiny_llama, train_tokenizer


def load_policy(
    name: str, texts: Sequence[str], tiny: TinyOptions = TinyOptions(), trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The policy called ``name``, with a tokenizer that pads on the left and has pad and eos tokens.

    Args:
        name: ``"tiny"`` (made in code, its tokenizer trained on ``texts``), a local directory, or a hub id.
        texts: the task's own texts.
        tiny: shape of the embedded policy.
        trust_remote_code: run model code that comes with a checkpoint; off unless you trust its author.

    Raises:
        UsageError: if there is no such policy, or its tokenizer has no eos token.
    """
    if name == "tiny":
        made = train_tokenizer(texts, tiny.vocab_size)
        return tiny_llama(made, tiny), made
    looks_local = name.startswith((".", "/", "~"))
    path = str(Path(name).expanduser()) if looks_local else name
    require(
        not looks_local or Path(path).is_dir(),
        "policy",
        name,
        "there is no such directory: give one that holds config.json",
    )
    try:
        model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=trust_remote_code, dtype="auto")
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, trust_remote_code=trust_remote_code, padding_side="left"
        )
    except UnpicklingError as error:
        remedy = "its weights are a pickle that wants to run code: get them as safetensors"
        raise UsageError("policy", name, remedy) from error
    except (OSError, ValueError) as error:
        remedy = f"use tiny, a local directory, or a hub id that this machine can reach ({str(error).splitlines()[0]})"
        raise UsageError("policy", name, remedy) from error
    require(
        tokenizer.eos_token_id is not None, "policy", name, "its tokenizer has no eos token: responses could never end"
    )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer
