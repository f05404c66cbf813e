"""The supervised warm start, trained once and kept: the same configuration finds the same result again.

In the layout ``lora`` an adapter is what is trained and kept, a few megabytes; it is then added to the base's weights,
so that PPO starts from the fine-tuned model with adapters of its own, and that model is its reference. In the other
layouts every weight is trained, and a model of full size is kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
import torch
import transformers
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ippo.callbacks import WarmStartProgress
from ippo.data.demonstrations import encode_demonstrations
from ippo.data.task import Rows
from ippo.errors import require
from ippo.models import LoraOptions
from ippo.models.adapters import merge_into, with_adapter
from ippo.models.configuration import context_length
from ippo.models.export import inherit_vocabulary, savable_generation
from ippo.models.sharding import is_without_numbers
from ippo.recipes.start import digest, keep_start, load_start, merge_adapter, origin, start_of
from ippo.rollout.end_tokens import end_tokens
from ippo.rollout.sequences import Sequences
from ippo.sft import SFTModule, SFTOptions, demonstration_loader

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


def warm_start(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    options: SFTOptions,
    seed: int,
    accelerator: str = "auto",
    logger: Logger | bool = False,
    progress: bool = True,
    cache: Path | None = None,
    lora: LoraOptions | None = None,
    mixed: bool = False,
    run: Path | None = None,
    resume: bool = False,
) -> tuple[PreTrainedModel, bool]:
    """Fine-tune ``policy`` on the demonstrations, or load the result of having done so before.

    Args:
        policy, tokenizer: what to start from.
        rows: demonstrations, with ``prompt`` and ``solution``.
        options: see :class:`ippo.sft.SFTOptions`.
        seed: order of the demonstrations.
        accelerator, logger: of the Lightning trainer.
        progress: whether to show a bar.
        cache: directory of finished warm starts; ``$IPPO_CACHE`` or ``~/.cache/ippo`` by default.
        lora: train such an adapter instead of every weight, and merge it.
        mixed: compute in bfloat16 (``bf16-mixed``); the weights stay as they are.
        run: directory of a run, which keeps what it starts from (see :mod:`ippo.recipes.start`).
        resume: whether the run began earlier: then what it has kept holds, and nothing is trained anew.

    Returns:
        The fine-tuned policy, and whether it had been made before.

    Raises:
        UsageError: if it can neither be found nor made.
    """
    if is_without_numbers(policy):  # the first rank has them
        while run is not None and not start_of(run).is_dir():
            time.sleep(0.5)
        return policy, True
    if resume and run is not None and start_of(run).is_dir():
        return load_start(run, policy, tokenizer), True
    made_of = origin(policy, tokenizer) if run is not None else {}
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    if options.steps == 0:
        if run is not None and first:
            keep_start(run, made_of, None)
        return policy, False
    folder = kept_at(policy, tokenizer, rows, options, seed, cache, lora, mixed)
    others = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0))) > 0
    remedy = f"what it started from is neither there (start/) nor in the cache ({folder}), and another would differ"
    require(folder.is_dir() or not resume, "run", str(run), remedy)
    while others and not folder.is_dir():  # the machine's first rank trains, its others wait
        time.sleep(0.5)
    if folder.is_dir():
        if run is not None and first:
            keep_start(run, made_of, folder)
        if lora is None:
            return inherit_vocabulary(type(policy).from_pretrained(folder, dtype=policy.dtype), policy), True
        merge_adapter(policy, folder)
        return policy, True
    demonstrations = _encoded(policy, tokenizer, rows, context_length(policy))
    trainer = L.Trainer(
        max_epochs=1,
        accelerator=accelerator,
        devices=1,
        precision="bf16-mixed" if mixed else None,
        gradient_clip_val=options.max_grad_norm,
        logger=logger,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
        callbacks=[WarmStartProgress()] if progress else [],
        use_distributed_sampler=False,
    )
    trained = policy if lora is None else with_adapter(policy, lora)
    trainer.fit(SFTModule(trained, options), demonstration_loader(demonstrations, options, seed))
    _save(trained, tokenizer, folder)
    if run is not None and first:
        keep_start(run, made_of, folder)
    if lora is not None:
        merge_into(policy, trained)
    return policy, False


def default_cache() -> Path:
    """Where warm starts are kept between runs."""
    return Path(os.environ.get("IPPO_CACHE", Path.home() / ".cache" / "ippo"))


def kept_at(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    options: SFTOptions,
    seed: int,
    cache: Path | None = None,
    lora: LoraOptions | None = None,
    mixed: bool = False,
) -> Path:
    """The directory of this warm start; it exists once the warm start has been made."""
    name = fingerprint(policy, tokenizer, rows, options, seed, lora, mixed)
    return (cache or default_cache()) / "warm-starts" / name


def fingerprint(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    options: SFTOptions,
    seed: int,
    lora: LoraOptions | None = None,
    mixed: bool = False,
) -> str:
    """A hash of all that the result depends on: starting weights, the demonstrations' tokens, end tokens, options,
    seed, precision, versions."""
    demonstrations = _encoded(policy, tokenizer, rows)
    found = hashlib.sha256()
    facts = {
        "policy": policy.config.to_dict(),
        "options": dataclasses.asdict(options),
        "seed": seed,
        "versions": [torch.__version__, transformers.__version__, L.__version__],
        "ends": dataclasses.asdict(end_tokens(policy, tokenizer)),
    }
    if lora is not None:
        facts["lora"] = dataclasses.asdict(lora)
    if mixed:
        facts["mixed"] = mixed
    found.update(json.dumps(facts, default=str).encode())
    tensors = {name: value for name, value in vars(demonstrations).items() if value is not None}
    found.update(digest((*tensors.items(), *policy.state_dict().items())).encode())
    return found.hexdigest()[:24]


def _encoded(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, context: int | None = None
) -> Sequences:
    end = end_tokens(policy, tokenizer).closing
    return encode_demonstrations(tokenizer, rows, context, "task.train", end)


def _save(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a plain Hugging Face directory, of a model or of its adapter, that appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unfinished-"))
    with savable_generation(policy, tokenizer):
        policy.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    try:
        unfinished.rename(folder)
    except OSError:  # another run finished the same warm start first
        shutil.rmtree(unfinished)
