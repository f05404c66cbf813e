"""The trained policy as a plain Hugging Face directory, which needs nothing of this package."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ippo.distributed import rank
from ippo.errors import require
from ippo.models.actor_critic import Layout
from ippo.models.configuration import text_config
from ippo.rollout.end_tokens import end_tokens
from ippo.rollout.sharded import in_parts

_CUT = "cut_vocabulary"


@dataclass(frozen=True)
class CutVocabulary:
    """What :func:`cut_vocabulary` took off a model.

    Args:
        rows: embeddings that the model had.
        weights: for each weight that became smaller, the axis and what was beyond.
    """

    rows: int
    weights: Mapping[str, tuple[int, Tensor]]


def cut_vocabulary(model: Any, tokens: int) -> None:
    """Cut off the embeddings beyond the first ``tokens``; the model remembers them for :func:`export`."""
    before, rows = model.state_dict(), model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(tokens)
    beyond = {}
    for name, value in model.state_dict().items():
        if value.shape != before[name].shape:
            sizes = zip(value.shape, before[name].shape, strict=True)
            axis = next(place for place, (new, old) in enumerate(sizes) if new != old)
            beyond[name] = (axis, before[name].narrow(axis, tokens, rows - tokens).detach().cpu().clone())
    setattr(model, _CUT, CutVocabulary(rows, beyond))


def inherit_vocabulary(model: PreTrainedModel, origin: PreTrainedModel) -> PreTrainedModel:
    """``model``, with what was cut off ``origin``, which has the same shape."""
    setattr(model, _CUT, getattr(origin, _CUT, None))
    return model


def export(models: Layout, tokenizer: PreTrainedTokenizerBase, folder: Path | str) -> Path:
    """Write model, tokenizer and chat template, and a generation config that names the end tokens.

    Adapters are added to the base's weights, in float32. Embeddings that :func:`ippo.models.loading.load_policy` cut
    off are put back as they were, so that the weights fit the model that the policy was made from. The models stay as
    they are; a second copy of adapted weights is held meanwhile. Of ranks that keep parts of the models all must call;
    the first gathers the policy in its machine's memory, and writes.

    Args:
        models: policy, value and reference; in code ``module.model``.
        tokenizer: the policy's tokenizer; ``module.tokenizer``.
        folder: a new or empty directory. It appears whole or not at all.

    Returns:
        The directory.

    Raises:
        UsageError: if there is something at ``folder`` already.
    """
    folder = Path(folder)
    taken = writes(models) and folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    require(not taken, "output", str(folder), "there is something already: name another directory, or remove it")
    plain, weights = models.merged()
    if not writes(models):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unfinished-"))
    try:
        with _as_it_came(plain, weights), savable_generation(plain, tokenizer):
            plain.save_pretrained(unfinished, state_dict=weights)
        tokenizer.save_pretrained(unfinished)
        unfinished.chmod(0o755)
        unfinished.replace(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def writes(models: Layout) -> bool:
    """Whether this process is one that has something to write: of ranks that keep parts of the models, the first."""
    return rank() == 0 or not in_parts(models.policy)


@contextmanager
def _as_it_came(plain: PreTrainedModel, weights: dict[str, Tensor]) -> Iterator[None]:
    """Put the vocabulary's end back into ``weights``, and its size into the configuration until the end."""
    cut: CutVocabulary | None = getattr(plain, _CUT, None)
    if cut is None:
        yield
        return
    whole: dict[int, Tensor] = {}
    for name, (axis, beyond) in cut.weights.items():
        key = weights[name].data_ptr()  # tied weights stay one
        if key not in whole:
            whole[key] = torch.cat([weights[name], beyond.to(weights[name])], dim=axis)
        weights[name] = whole[key]
    config = text_config(plain)
    tokens, config.vocab_size = config.vocab_size, cut.rows
    try:
        yield
    finally:
        config.vocab_size = tokens


@contextmanager
def savable_generation(model: Any, tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """The model's own generation config with its end tokens and its tokenizer's pad token, until the end.

    Many models come with settings that transformers loads and refuses to save, such as a temperature without
    ``do_sample``: sampling is switched on then, or only the tokens are kept.
    """
    own, ends = model.generation_config, list(end_tokens(model, tokenizer).ids)
    named = {"eos_token_id": ends if len(ends) > 1 else ends[0], "pad_token_id": tokenizer.pad_token_id}
    whole = copy.deepcopy(own)
    whole.update(**named)
    sampled = copy.deepcopy(whole)
    sampled.do_sample = True
    model.generation_config = next(filter(_is_valid, (whole, sampled)), GenerationConfig(**named))
    try:
        yield
    finally:
        model.generation_config = own


def _is_valid(config: GenerationConfig) -> bool:
    try:
        config.validate(strict=True)
    except ValueError:
        return False
    return True
