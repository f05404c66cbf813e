"""``python -m ippo.recipes.NAME``: warm start, influence-filtered PPO, and a table of what it brought."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from transformers import PreTrainedTokenizerBase

from ippo.callbacks import (
    EpisodeLogger,
    GracefulStop,
    RunRecord,
)
from ippo.data.prompts import PromptDataModule
from ippo.files import whole
from ippo.influence.parameters import is_sharded
from ippo.models import export
from ippo.models.actor_critic import Layout
from ippo.recipes.assembly import build_module, build_trainer, load, models_of, start_policy
from ippo.recipes.filters import build_filter, build_monitor
from ippo.recipes.memory import longest_prompt, say_memory
from ippo.recipes.parser import build_parser, parse
from ippo.recipes.presets import preset_files
from ippo.recipes.recipe import Recipe
from ippo.recipes.report import print_export, print_report, scores, summarise
from ippo.recipes.run_directory import RunDirectory
from ippo.recipes.screen import console, quiet


def train(recipe: Recipe, arguments: Sequence[str]) -> None:
    """Read the options, and make the run that they ask for.

    Raises:
        UsageError: if an argument is wrong.
    """
    presets = preset_files(arguments, recipe.tasks[0], recipe.policy)
    parser = build_parser(f"python -m ippo.recipes.{recipe.name}", recipe.description, presets)
    config, options = parse(parser, arguments)
    run = RunDirectory(options.trainer.default_root_dir, recipe.name, options.resume)
    if options.resume:  # what the run was started with holds, unless it is given anew
        parser.default_config_files = [*parser.default_config_files, str(run.config)]
        config, options = parse(parser, arguments)
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        with whole(run.config) as unfinished:
            parser.save(config, str(unfinished), overwrite=True)
    make(options, run, recipe.tasks)


def make(options: Namespace, run: RunDirectory, tasks: Sequence[str]) -> None:
    """The whole run, from the task to the table."""
    quiet()
    console.quiet = rank_zero_only.rank != 0  # type: ignore[attr-defined]
    seed = options.seed_everything
    L.seed_everything(seed, verbose=False)
    influence_filter = build_filter(options.filter)
    monitor = build_monitor(options.monitor, influence_filter)
    task, policy, tokenizer = load(options, tasks)
    console.print(f"Run directory: {run.path}")
    say_memory(options, policy, longest_prompt(tokenizer, task.train), console)

    start = time.perf_counter()
    logger = TensorBoardLogger(run.path, name="", version="sft")
    progress = options.trainer.enable_progress_bar is not False
    policy, cached = start_policy(policy, tokenizer, task, options, logger, progress, run.path, options.resume)
    seconds = time.perf_counter() - start
    console.print("Warm start: reused." if cached else f"Warm start: {options.sft.steps} steps in {seconds:.0f} s.")

    L.seed_everything(seed, verbose=False)  # from here on a reused warm start and a new one draw the same numbers
    models = models_of(options, policy)
    module = build_module(models, tokenizer, task, options)
    data = PromptDataModule(task, options.data, seed)
    record = RunRecord()
    trainer = build_trainer(options.trainer, run, [influence_filter, monitor, options.guard, EpisodeLogger(), record])
    before = trainer.test(module, data, verbose=False)[0]
    trainer.fit(module, data, ckpt_path=run.newest_checkpoint() if options.resume else None)
    after = trainer.test(module, data, verbose=False)[0]

    speakers = (module, *trainer.callbacks)  # type: ignore[attr-defined]
    stops = [(said, one) for one in speakers if (said := getattr(one, "stopping_reason_message", None))]
    stopped_by, by = stops[0] if stops else ("max_epochs", None)
    sft, trained = (scores(tested, options.evaluation.samples, len(task.test)) for tested in (before, after))
    interrupted = isinstance(by, GracefulStop)  # there is more to do, unlike where the filter ended the run
    summary = summarise(sft, trained, record.iterations, stopped_by, seed, interrupted)
    if trainer.is_global_zero:
        run.write_summary(summary)
        print_report(summary, seconds, console)
        console.print(f"Curves: tensorboard --logdir {run.path}")
    if trainer.is_global_zero and options.trainer.enable_checkpointing is not False:
        give(models, tokenizer, run, options)


def give(models: Layout, tokenizer: PreTrainedTokenizerBase, run: RunDirectory, options: Namespace) -> None:
    """Write the trained policy out, and say where it is."""
    if any(map(is_sharded, models.parameters())):
        return  # the ranks would have to gather it; its checkpoint is for Lightning's own tools
    shutil.rmtree(run.policy, ignore_errors=True)  # what a run that was resumed had come to
    print_export(export(models, tokenizer, run.policy), options.sampling.max_new_tokens, options.chat, console)
