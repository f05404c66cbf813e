"""What a run is made of: task, policy, models, module and trainer, as the options ask for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ippo.callbacks import (
    GracefulStop,
    IterationCheckpoint,
    ReproducibleState,
    RolloutProgress,
)
from ippo.callbacks.tensorboard import DescribedCurves
from ippo.data import Task
from ippo.data.chat import in_chat
from ippo.data.demonstrations import fitting, require_fit
from ippo.data.verifier import with_verifier
from ippo.errors import UsageError, require
from ippo.models import ActorCritic, build_models
from ippo.models.actor_critic import Layout
from ippo.models.configuration import context_length
from ippo.models.layouts import prepare
from ippo.models.loading import load_policy
from ippo.models.memory import blueprint
from ippo.models.sharding import to_be_sharded
from ippo.ppo.module import PPOModule
from ippo.recipes.engines import build_engine
from ippo.recipes.presets import policy_id
from ippo.recipes.run_directory import RunDirectory
from ippo.recipes.screen import console
from ippo.recipes.strategies import shards, strategy_of
from ippo.recipes.tasks import load_task, named
from ippo.recipes.warm_start import warm_start
from ippo.rollout.end_tokens import declare_turn_end
from ippo.rollout.soundness import require_causal


def load(
    options: Namespace, tasks: Sequence[str], numbers: bool = True
) -> tuple[Task, PreTrainedModel, PreTrainedTokenizerBase]:
    """Task, policy and tokenizer that fit each other; what had to be left out is said.

    Args:
        options: of the recipe.
        tasks: the names that it knows.
        numbers: whether the policy's weights are read (see :func:`holds_policy`).

    Raises:
        UsageError: if one of them cannot be had, or a row is longer than the policy's context and is not to be dropped.
    """
    own = options.task != "embedded" or not options.verifier.errs
    require(own, "verifier", options.task, "this task has dials of its own: say --embedded.verifier_hole and the like")
    made = (options.task, options.task_path, options.splits, options.embedded, tasks, options.columns)
    task = load_task(*made, options.gsm_symbolic)
    if options.reward is not None:
        reward = named("reward", options.reward)
        said = f"Its reward is {options.reward}; the figures are the task's own."
        task = dataclasses.replace(task, reward=reward, reward_weights=None, notice=said)
    task = with_verifier(task, options.verifier)
    texts = [row["prompt"] + row["solution"] for row in task.train]
    place = policy_id(options.policy)
    policy, tokenizer = load_policy(place, texts, options.tiny, options.trust_remote_code, options.tokenizer, numbers)
    policy = prepare(policy, options.layout, options.models)
    if numbers:
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


def holds_policy(trainer: L.Trainer) -> bool:
    """Whether this process reads the policy's weights: of ranks that keep parts of it, the first alone does."""
    return trainer.is_global_zero or not shards(trainer.strategy)


def models_of(options: Namespace, policy: PreTrainedModel, sharded: bool = False) -> Layout:
    """The models that the run's PPO asks for, and no others: GRPO without a KL penalty holds the policy alone.

    Args:
        options: of the recipe.
        policy: after its warm start.
        sharded: whether ranks will keep parts of them.
    """
    ppo = options.ppo

    def build(policy: PreTrainedModel) -> Layout:
        parts = {"critic": ppo.uses_values, "reference": ppo.uses_reference}
        return build_models(options.layout, policy, options.models, options.lora, **parts)

    return to_be_sharded(build, policy, options.layout == "lora") if sharded else build(policy)


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


def require_sound(options: Namespace, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task) -> None:
    """Have the module check its options on models without numbers, before anything is trained.

    Raises:
        UsageError: if one of them is wrong.
    """
    ppo = options.ppo
    shapes = (policy, options.layout, options.models, options.lora)
    models = blueprint(*shapes, critic=ppo.uses_values, reference=ppo.uses_reference)
    PPOModule(models, tokenizer, task.reward, task.check, ppo, options.sampling, options.evaluation)


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


def build_trainer(everything: Namespace, run: RunDirectory, callbacks: Sequence[L.Callback | None]) -> L.Trainer:
    """Lightning's trainer with the user's options; what they leave open goes into the run directory."""
    options = everything.trainer
    arguments = {**options.as_dict(), **strategy_of(everything)}
    arguments["default_root_dir"] = str(run.path)
    if arguments["logger"] is None:
        arguments["logger"] = DescribedCurves(run.path, name="", version="ppo")
    own = [*callbacks, GracefulStop(), ReproducibleState()]
    if options.enable_progress_bar is not False:
        own.append(RolloutProgress())
    if options.enable_checkpointing is not False:
        name = "iteration-{epoch:05d}"
        own.append(
            IterationCheckpoint(run.checkpoints, name, save_on_train_epoch_end=True, auto_insert_metric_name=False)
        )
    theirs = options.callbacks if isinstance(options.callbacks, list) else [options.callbacks]  # one, or none
    if arguments["logger"] and not any(isinstance(one, LearningRateMonitor) for one in theirs):
        own.append(LearningRateMonitor(logging_interval="epoch"))
    arguments["callbacks"] = [callback for callback in (*own, *theirs) if callback]
    _require_different(arguments["callbacks"])
    try:
        trainer = L.Trainer(**arguments)
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        said = {name: options[name] for name in ("accelerator", "devices", "strategy", "precision", "max_time")}
        given = ", ".join(f"{name} {value}" for name, value in said.items() if value not in ("auto", None))
        raise UsageError("trainer", given, " ".join(str(error).split())) from error
    spawns = isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)
    remedy = "what its processes learn is lost when they end: use ddp"
    require(not spawns, "trainer.strategy", str(options.strategy), remedy)
    remedy = "the report is of the test problems: use 1 or more, or the share of them that is to be judged"
    require(trainer.limit_test_batches != 0, "trainer.limit_test_batches", options.limit_test_batches, remedy)
    return trainer


def _require_different(callbacks: Sequence[L.Callback]) -> None:
    """Refuse two callbacks that would write their state into one place of a checkpoint."""
    keys: set[str] = set()
    for one in callbacks:
        if is_overridden("state_dict", one, L.Callback):
            name = type(one).__name__
            remedy = "there are two of it with the same settings to tell them by: leave one out"
            require(one.state_key not in keys, "trainer.callbacks", name, remedy)
            keys.add(one.state_key)
