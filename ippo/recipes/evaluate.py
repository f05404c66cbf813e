"""``python -m ippo.recipes.math evaluate``: judge a run's checkpoint or any Hugging Face model, without training."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ippo.callbacks import AnswerLogger
from ippo.data import Task
from ippo.data.prompts import PromptDataModule
from ippo.distributed import total_of
from ippo.errors import require
from ippo.models.actor_critic import Layout
from ippo.models.checkpoints import weights_of
from ippo.models.sharding import to_be_sharded
from ippo.recipes.assembly import build_module, holds_policy, load, models_of, start_policy
from ippo.recipes.judged import Judged
from ippo.recipes.parser import parse, parser_of
from ippo.recipes.presets import told
from ippo.recipes.recipe import Recipe
from ippo.recipes.report import print_scores, scores, versions
from ippo.recipes.screen import console, quiet
from ippo.recipes.start import start_of
from ippo.recipes.strategies import require_in_parts, shards, strategy_of


class PolicyAlone(nn.Module):
    """All of the models that sampling asks for: a policy, without value and reference."""

    def __init__(self, policy: PreTrainedModel) -> None:
        super().__init__()
        self.policy = policy


def evaluate(recipe: Recipe, arguments: Sequence[str]) -> None:
    """Sample k answers to each test problem, print the table, and write ``answers.parquet`` and ``evaluation.json``.

    Raises:
        UsageError: if an argument is wrong.
    """
    parser = parser_of(recipe, "evaluate", arguments)
    _, options = parse(parser, arguments)
    directory = Path("runs") / f"{recipe.name}-evaluation-{time.strftime('%Y%m%d-%H%M%S')}"
    checkpoint = None
    if options.checkpoint is not None:
        checkpoint = find_checkpoint(options.checkpoint)
        run = checkpoint.parent.parent
        parser.default_config_files = [*parser.default_config_files, str(run / "config.yaml")]
        _, options = parse(parser, arguments)
        directory = run / "evaluation"
    else:
        policy = told(arguments).get("policy") or told(arguments).get("preset")
        remedy = "say which model to judge: --checkpoint RUN_DIRECTORY, or --policy HUB_ID_OR_DIRECTORY"
        require(policy is not None and policy != "tiny", "checkpoint", None, remedy)
    results = judge(options, checkpoint, recipe.tasks, Path(options.output or directory))
    print_scores({"": results["scores"]}, console)
    console.print(
        f"Responses without an answer that can be read: {results['no_answer']:.1%}. Unfinished, and so wrong: "
        f"{results['unfinished']:.1%}."
    )
    console.print(f"All answers: {results['answers']}")


def find_checkpoint(place: str) -> Path:
    """The checkpoint at ``place``, or the newest of the run that is there.

    Raises:
        UsageError: if there is none, or the run's ``config.yaml`` is not with it.
    """
    path = Path(place)
    found = sorted((path / "checkpoints").glob("*.ckpt"), key=lambda file: file.stat().st_mtime) or [path]
    there = found[-1].is_file() or (found[-1].suffix == ".ckpt" and found[-1].is_dir())
    require(there, "checkpoint", place, "there is no checkpoint: give a run's directory or a .ckpt file")
    config = found[-1].parent.parent / "config.yaml"
    require(
        config.is_file(), "checkpoint", place, f"{config} is missing: a checkpoint says nothing without its options"
    )
    return found[-1]


def started_models(
    checkpoint: Path,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    options: Namespace,
    sharded: bool = False,
) -> Layout:
    """The models as the checkpoint's run began with them; what the checkpoint holds is not yet in them."""
    run = checkpoint.parent.parent
    if options.layout == "lora" or start_of(run).is_dir():  # it holds adapters: their base is the warm start
        policy, _ = start_policy(policy, tokenizer, task, options, run=run, resume=True)
    return models_of(options, policy, sharded)


def judge(options: Namespace, checkpoint: Path | None, tasks: Sequence[str], directory: Path) -> dict[str, Any]:
    """Test one policy; what is returned has also been written to ``evaluation.json``."""
    quiet()
    L.seed_everything(options.seed_everything, verbose=False)
    answers, judged = AnswerLogger(directory / "answers.parquet"), Judged(options.evaluation.samples)
    callbacks = [answers, judged]
    own = {"logger": False, "enable_checkpointing": False, "default_root_dir": str(directory), "callbacks": callbacks}
    trainer = L.Trainer(**{**options.trainer.as_dict(), **strategy_of(options), **own})
    console.quiet = not trainer.is_global_zero
    sharded = shards(trainer.strategy)
    if checkpoint is not None and sharded:
        require_in_parts(checkpoint)
    task, policy, tokenizer = load(options, tasks, holds_policy(trainer))
    if checkpoint is not None:
        models: Any = started_models(checkpoint, policy, tokenizer, task, options, sharded)
    else:
        models = to_be_sharded(PolicyAlone, policy, one_base=True) if sharded else PolicyAlone(policy)
    module = build_module(models, tokenizer, task, options)
    theirs = checkpoint
    if checkpoint is not None and checkpoint.is_dir() and not sharded:  # Lightning reads it into models in parts alone
        module.load_state_dict(weights_of(checkpoint))
        theirs = None
    data = PromptDataModule(task, options.data, options.seed_everything)
    tested = trainer.test(module, data, ckpt_path=theirs, verbose=False)[0]
    count = total_of(len(answers.table["answer"]), module.device)
    results = {
        "task": task.name,
        "policy": options.policy,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "scores": scores(tested, options.evaluation.samples, judged.problems),
        "no_answer": total_of(answers.table["answer"].count(None), module.device) / count,
        "unfinished": total_of(answers.table["finished"].count(False), module.device) / count,
        "answers": str(answers.path),
        "seed": options.seed_everything,
        "versions": versions(),
    }
    if trainer.is_global_zero:
        (directory / "evaluation.json").write_text(json.dumps(results, indent=2) + "\n")
    return results
