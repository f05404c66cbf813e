"""``python -m ippo.recipes.NAME``: warm start, influence-filtered PPO, and a table of what it brought."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from transformers import PreTrainedTokenizerBase

from ippo.callbacks import Dashboard, EpisodeLogger, InfluenceFilterCallback, RunRecord, Throughput
from ippo.data.prompts import PromptDataModule
from ippo.distributed import rank
from ippo.models import export
from ippo.models.actor_critic import Layout
from ippo.recipes.assembly import (
    build_module,
    build_trainer,
    holds_policy,
    load,
    models_of,
    require_sound,
    start_policy,
)
from ippo.recipes.filters import build_filter, build_monitor
from ippo.recipes.hparams import hparams
from ippo.recipes.judged import Baseline, Judged, tested
from ippo.recipes.memory import MeasuredMemory, longest_prompt, say_memory
from ippo.recipes.parser import in_writing, parse, parser_of
from ippo.recipes.products import SayProducts, float32_products
from ippo.recipes.recipe import Recipe
from ippo.recipes.report import print_export, print_report, print_scores, summarise
from ippo.recipes.resume import changes, require_applicable, why_finished, without_doubles
from ippo.recipes.run_directory import RunDirectory
from ippo.recipes.run_report import write_report
from ippo.recipes.samples import print_answers, print_extremes
from ippo.recipes.screen import console, quiet
from ippo.recipes.start import require_made_of
from ippo.recipes.stopping import why_stopped
from ippo.recipes.strategies import require_in_parts, shards, strategy_of


def train(recipe: Recipe, arguments: Sequence[str]) -> None:
    """Read the options, and make the run that they ask for, or go on with the one that is there.

    Raises:
        UsageError: if an argument is wrong.
    """
    parser = parser_of(recipe, "train", arguments)
    config, options = parse(parser, arguments)
    run = RunDirectory(options.trainer.default_root_dir, recipe.name, options.resume)
    with run:
        moved = False
        if options.resume:  # what the run was started with holds, unless it is given anew
            parser.default_config_files = [*parser.default_config_files, str(run.config)]
            before, then = parse(parser, [])
            config, _ = parse(parser, arguments)
            config.trainer.callbacks = without_doubles(config.trainer.callbacks)
            options = parser.instantiate(config)
            changed = changes(in_writing(parser, before), in_writing(parser, config))
            require_applicable(changed, then, options)
            checkpoint = run.newest_checkpoint()
            if checkpoint:
                require_in_parts(checkpoint, shards(strategy_of(options)["strategy"]))
            if checkpoint and (why := why_finished(checkpoint, run.summary, options.trainer, changed)):
                return say_finished(run, why)
            moved = bool(changed.keys() & {"policy", "tokenizer"})
        make(options, run, recipe, in_writing(parser, config), moved)
    return None


def make(options: Namespace, run: RunDirectory, recipe: Recipe, config: str, moved: bool = False) -> None:
    """The whole run, from the task to the table.

    Args:
        options: all of them, as objects.
        run: its directory.
        recipe: whose command line it is.
        config: the options in writing.
        moved: whether a run goes on whose policy is to be found elsewhere now.
    """
    quiet()
    console.quiet = rank_zero_only.rank != 0  # type: ignore[attr-defined]
    products = float32_products(options.float32_matmul_precision)
    torch.set_float32_matmul_precision(products)
    if products != "highest":
        console.print(
            f"Float32 products: {products}, which on GPUs from Ampere on rounds them to TF32 or coarser; exact with "
            "--float32_matmul_precision highest."
        )
    influence_filter = build_filter(options.filter)
    monitor = build_monitor(options.monitor, influence_filter)
    record, judged, dashboard = RunRecord(), Judged(options.evaluation.samples), Dashboard(hparams(config))
    memory = MeasuredMemory(console)
    watching = [options.guard, EpisodeLogger(), Throughput(), record, judged, dashboard, memory, SayProducts(console)]
    callbacks = [influence_filter, monitor, *watching, Begin(run, config)]
    trainer = build_trainer(options, run, callbacks)
    sharded, here = shards(trainer.strategy), holds_policy(trainer)

    seed = options.seed_everything
    L.seed_everything(seed, verbose=False)
    task, policy, tokenizer = load(options, recipe.tasks, here)
    if moved and here:
        require_made_of(run.path, policy, tokenizer)
    require_sound(options, policy, tokenizer, task)
    console.print(f"Run directory: {run.path}")
    ranks = trainer.world_size if sharded else 1
    memory.estimated = say_memory(options, policy, longest_prompt(tokenizer, task.train), console, ranks)

    if sharded and options.sft.steps and not options.resume:
        console.print(
            "The warm start trains the whole policy on the first rank's device; the others wait. Where it does not "
            "fit: --sft.steps 0 with a fine-tuned policy, or --layout lora."
        )
    start = time.perf_counter()
    logger = TensorBoardLogger(run.path, name="", version="sft")
    progress = options.trainer.enable_progress_bar is not False
    policy, cached = start_policy(policy, tokenizer, task, options, logger, progress, run.path, options.resume)
    seconds = time.perf_counter() - start
    console.print("Warm start: reused." if cached else f"Warm start: {options.sft.steps} steps in {seconds:.0f} s.")

    L.seed_everything(seed, verbose=False)  # from here on a reused warm start and a new one draw the same numbers
    models = models_of(options, policy, sharded)
    del policy  # of models in parts it is needed until they have theirs
    module = build_module(models, tokenizer, task, options)
    data = PromptDataModule(task, options.data, seed)
    baseline = Baseline(run.baseline, options)
    before = baseline.read() if options.resume else None
    if before is None:
        before = tested(trainer, module, data, judged)
        if trainer.is_global_zero:
            baseline.write(before)
    if not options.resume and trainer.limit_val_batches:
        trainer.validate(module, data, verbose=False)  # the curves begin where training does
    trainer.fit(module, data, ckpt_path=run.newest_checkpoint() if options.resume else None)
    run.begin(config)  # also where there was no iteration to do
    stopped_by, interrupted = why_stopped(trainer)
    after: dict[str, Any] = {"scores": None, "answers": []} if interrupted else tested(trainer, module, data, judged)

    summary = summarise(before["scores"], after["scores"], record.iterations, stopped_by, seed, interrupted)
    if trainer.is_global_zero:
        run.write_summary(summary)
        if interrupted:  # what was judged on the way, where it was judged twice
            latest = dashboard.latest_answers if dashboard.latest_at > dashboard.first_at else []
            run.write_answers(dashboard.first_answers, latest, "validation")
        else:
            run.write_answers(before["answers"], after["answers"], "test")
        filters = [one for one in trainer.callbacks if isinstance(one, InfluenceFilterCallback)]  # type: ignore[attr-defined]
        print_report(summary, seconds, console, bool(filters) and all(one.dry_run for one in filters))
        print_answers(before["answers"], after["answers"], console)
        print_extremes(run.episodes, console)
        console.print(f"Curves: tensorboard --logdir {run.path}")
    if options.trainer.enable_checkpointing is not False:
        if trainer.is_global_zero or sharded:
            give(models, tokenizer, run, options)
        if trainer.is_global_zero and interrupted:
            say_how_to_go_on(run, recipe)
    if trainer.is_global_zero:
        say_report(write_report(run.path))


class Begin(L.Callback):
    """Writes the options down when training begins: by then everything has been found sound.

    Args:
        run: the directory.
        config: the options in writing.
    """

    def __init__(self, run: RunDirectory, config: str) -> None:
        self.run, self.config = run, config

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Not before: callbacks check what they need in ``on_train_start``."""
        self.run.begin(self.config)


def give(models: Layout, tokenizer: PreTrainedTokenizerBase, run: RunDirectory, options: Namespace) -> None:
    """Write the trained policy out, and say where it is; ranks that keep parts of it all take part."""
    if rank() == 0:
        shutil.rmtree(run.policy, ignore_errors=True)  # what a run that was resumed had come to
    print_export(export(models, tokenizer, run.policy), options.sampling.max_new_tokens, options.chat, console)


def say_how_to_go_on(run: RunDirectory, recipe: Recipe) -> None:
    """The whole commands that go on with an interrupted run, and that judge it as it is."""
    place = shlex.quote(str(run.path))
    for what, command in (
        ("Go on from here", f"{recipe.command('train')} --resume --trainer.default_root_dir {place}"),
        ("Test the policy as it is", f"{recipe.command('evaluate')} --checkpoint {place}"),
    ):
        console.print(f"{what}:\n  {command}", markup=False, highlight=False, soft_wrap=True)


def say_report(report: Path) -> None:
    """Where the page is that tells all of it."""
    console.print(f"Report: {report}", markup=False, highlight=False, soft_wrap=True)


def say_finished(run: RunDirectory, why: str) -> None:
    """What a finished run came to, as it stands in its summary; nothing is tested again."""
    console.print(f"This run is finished: {why}.", markup=False, highlight=False)
    summary = json.loads(run.summary.read_text())
    print_scores({"warm start": summary["sft"], "trained": summary["trained"]}, console)
