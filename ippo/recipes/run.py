"""What all recipes share: warm start, influence-filtered PPO, and a table of what it brought."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ippo.callbacks import (
    EpisodeLogger,
    GracefulStop,
    IterationCheckpoint,
    ReproducibleState,
    RolloutProgress,
    RunRecord,
)
from ippo.data import Task
from ippo.data.chat import in_chat
from ippo.data.demonstrations import fitting, require_fit
from ippo.data.prompts import PromptDataModule
from ippo.errors import UsageError
from ippo.files import StorageError, whole
from ippo.influence.parameters import is_sharded
from ippo.models import ActorCritic, build_models, export
from ippo.models.actor_critic import Layout
from ippo.models.configuration import context_length
from ippo.models.layouts import prepare
from ippo.models.loading import load_policy
from ippo.ppo.module import PPOModule
from ippo.recipes.engines import build_engine
from ippo.recipes.filters import build_filter
from ippo.recipes.memory import longest_prompt, say_memory
from ippo.recipes.parser import build_parser, parse
from ippo.recipes.presets import policy_id, preset_files
from ippo.recipes.report import print_export, print_report, scores, summarise
from ippo.recipes.run_directory import RunDirectory
from ippo.recipes.screen import quiet
from ippo.recipes.tasks import load_task
from ippo.recipes.warm_start import warm_start
from ippo.rollout.end_tokens import declare_turn_end
from ippo.rollout.soundness import require_causal

console = Console()


@dataclass(frozen=True)
class Recipe:
    """A command line for a family of tasks.

    Args:
        name: of the module, and of its run directories.
        description: what ``--help`` says.
        tasks: their names; the first holds unless another is given.
        policy: the one that holds unless another is given.
    """

    name: str
    description: str
    tasks: tuple[str, ...]
    policy: str

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Train; with the word ``evaluate`` first only judge, with ``export`` write the trained policy out.

        Returns:
            The exit code: 0, 2 for a wrong argument, or 1 where a file could not be written.
        """
        arguments = list(sys.argv[1:] if arguments is None else arguments)
        try:
            if arguments[:1] == ["evaluate"]:
                from ippo.recipes.evaluate import evaluate

                evaluate(self, arguments[1:])
            elif arguments[:1] == ["export"]:
                from ippo.recipes.export import export

                export(self, arguments[1:])
            else:
                self._train(arguments)
        except (UsageError, StorageError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2 if isinstance(error, UsageError) else 1
        return 0

    def _train(self, arguments: Sequence[str]) -> None:
        presets = preset_files(arguments, self.tasks[0], self.policy)
        parser = build_parser(f"python -m ippo.recipes.{self.name}", self.description, presets)
        config, options = parse(parser, arguments)
        run = RunDirectory(options.trainer.default_root_dir, self.name, options.resume)
        if options.resume:  # what the run was started with holds, unless it is given anew
            parser.default_config_files = [*parser.default_config_files, str(run.config)]
            config, options = parse(parser, arguments)
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            with whole(run.config) as unfinished:
                parser.save(config, str(unfinished), overwrite=True)
        train(options, run, self.tasks)


def train(options: Namespace, run: RunDirectory, tasks: Sequence[str]) -> None:
    """The whole run, from the task to the table."""
    quiet()
    console.quiet = rank_zero_only.rank != 0  # type: ignore[attr-defined]
    seed = options.seed_everything
    L.seed_everything(seed, verbose=False)
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
    influence_filter = build_filter(options.filter)
    trainer = build_trainer(options.trainer, run, [influence_filter, options.guard, EpisodeLogger(), record])
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


def load(options: Namespace, tasks: Sequence[str]) -> tuple[Task, PreTrainedModel, PreTrainedTokenizerBase]:
    """Task, policy and tokenizer that fit each other; what had to be left out is said.

    Raises:
        UsageError: if one of them cannot be had, or a row is longer than the policy's context and is not to be dropped.
    """
    task = load_task(options.task, options.task_path, options.splits, options.embedded, tasks)
    texts = [row["prompt"] + row["solution"] for row in task.train]
    place = policy_id(options.policy)
    policy, tokenizer = load_policy(place, texts, options.tiny, options.trust_remote_code, options.tokenizer)
    policy = prepare(policy, options.layout, options.models)
    require_causal(policy)
    if options.chat:
        task = in_chat(task, tokenizer)
        if turn := declare_turn_end(policy, tokenizer):
            said = "which neither the model nor its tokenizer declares as an end; here it is one"
            console.print(f"The chat template ends a turn with {turn!r}, {said}.")
    context, new = context_length(policy), options.sampling.max_new_tokens
    if options.splits.too_long == "drop" and context is not None:
        task, lost = fitting(tokenizer, task, context, new)
        for split, count in lost.items():
            console.print(f"Dropped from {split}: {count} rows that a context of {context} tokens does not hold.")
    require_fit(tokenizer, task, context, new)
    size = sum(parameter.numel() for parameter in policy.parameters())
    console.print(
        f"Task {task.name}: {len(task.train)} training problems, {len(task.gold)} gold solutions. {task.notice}"
    )
    console.print(f"Policy {place}: {size:,} parameters.")
    return task, policy, tokenizer


def models_of(options: Namespace, policy: PreTrainedModel) -> Layout:
    """The models that the run's PPO asks for, and no others: GRPO without a KL penalty holds the policy alone."""
    ppo = options.ppo
    return build_models(
        options.layout, policy, options.models, options.lora, critic=ppo.uses_values, reference=ppo.uses_reference
    )


def start_policy(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    options: Namespace,
    logger: Logger | bool = False,
    progress: bool = False,
    run: Path | None = None,
    resume: bool = False,
) -> tuple[PreTrainedModel, bool]:
    """The policy after its warm start, and whether that was reused. A run's directory keeps it."""
    lora = options.lora if options.layout == "lora" else None
    seed, accelerator = options.seed_everything, options.trainer.accelerator
    return warm_start(
        policy,
        tokenizer,
        task.train,
        options.sft,
        seed,
        accelerator,
        logger,
        progress,
        lora=lora,
        mixed=is_mixed(options),
        run=run,
        resume=resume,
    )


def is_mixed(options: Namespace) -> bool:
    """Whether PPO, and with it the warm start, computes in bfloat16 and keeps the weights in float32."""
    return options.trainer.precision in ("bf16-mixed", "bf16")


def build_module(models: ActorCritic, tokenizer: PreTrainedTokenizerBase, task: Task, options: Namespace) -> PPOModule:
    """The module that trains and judges these models on this task."""
    return PPOModule(
        models,
        tokenizer,
        task.reward,
        task.check,
        options.ppo,
        options.sampling,
        options.evaluation,
        build_engine(options.engine, tokenizer),
        equal=task.equal,
        reward_weights=task.reward_weights,
    )


def build_trainer(options: Namespace, run: RunDirectory, callbacks: Sequence[L.Callback | None]) -> L.Trainer:
    """Lightning's trainer with the user's options; what they leave open goes into the run directory."""
    arguments = options.as_dict()
    arguments["default_root_dir"] = str(run.path)
    if arguments["logger"] is None:
        arguments["logger"] = TensorBoardLogger(run.path, name="", version="ppo")
    own = [*callbacks, GracefulStop(), ReproducibleState()]
    if options.enable_progress_bar is not False:
        own.append(RolloutProgress())
    if options.enable_checkpointing is not False:
        name = "iteration-{epoch:05d}"
        own.append(
            IterationCheckpoint(run.checkpoints, name, save_on_train_epoch_end=True, auto_insert_metric_name=False)
        )
    arguments["callbacks"] = [*(callback for callback in own if callback), *(options.callbacks or [])]
    return L.Trainer(**arguments)
