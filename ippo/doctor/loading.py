"""Load what is examined: the task, and the policy as a run would start from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import lightning as L
import torch
from jsonargparse import Namespace

from ippo.data import Task
from ippo.models.attention import without_cudnn_attention
from ippo.ppo.module import PPOModule
from ippo.recipes import commonsense, math, physics
from ippo.recipes.assembly import build_module, is_mixed, load, models_of, start_policy
from ippo.recipes.memory import estimate, longest_prompt
from ippo.recipes.warm_start import kept_at

TASKS = (*math.RECIPE.tasks, *physics.RECIPE.tasks, *commonsense.RECIPE.tasks)
SMALL = 10_000_000  # parameters up to which a shortened warm start takes seconds


def load_examined(options: Namespace, say: Callable[[str], None]) -> tuple[Task, PPOModule, int]:
    """Task, module, and the bytes that the run will take; loaded as the recipe does, warm start included.

    Args:
        options: of the recipe's parser, and the doctor's own.
        say: told what was loaded, line by line.

    Raises:
        UsageError: if the options do not fit each other, policy and task, as in the recipe.
    """
    without_cudnn_attention()  # as in the run
    seed = options.seed_everything
    L.seed_everything(seed, verbose=False)
    task, policy, tokenizer = load(options, TASKS)
    size = sum(parameter.numel() for parameter in policy.parameters())
    needed = estimate(options, policy, longest_prompt(tokenizer, task.train)).total

    lora = options.lora if options.layout == "lora" else None
    kept = kept_at(policy, tokenizer, task.train, options.sft, seed, lora=lora, mixed=is_mixed(options)).is_dir()
    whole = options.sft.steps
    steps = whole if kept else affordable(whole, size, options.doctor.warm_start_steps)
    options.sft = dataclasses.replace(options.sft, steps=steps)
    policy, _ = start_policy(policy, tokenizer, task, options)
    say(warm_start_line(steps, whole))

    L.seed_everything(seed, verbose=False)
    models = models_of(options, policy)
    module = build_module(models, tokenizer, task, options)
    gpu = options.trainer.accelerator != "cpu" and torch.cuda.is_available()
    return task, module.to("cuda" if gpu else "cpu").eval(), needed


def affordable(whole: int, size: int, asked: int | None) -> int:
    """Steps of warm start that an examination makes where the run's own is not kept.

    Args:
        whole: steps of the run's own.
        size: parameters of the policy.
        asked: what the user allows; None leaves it to the size.

    Example:
        >>> affordable(1500, 200_000, None), affordable(1500, 135_000_000, None), affordable(1500, 135_000_000, 50)
        (300, 0, 50)
    """
    allowed = asked if asked is not None else 300 if size <= SMALL else 0
    return min(whole, allowed)


def warm_start_line(steps: int, whole: int) -> str:
    """How the policy was warm-started for the examination.

    Example:
        >>> warm_start_line(300, 1500)
        'Warm start: 300 of 1500 steps; the run itself will start from a better policy.'
    """
    if steps == whole:
        return "Warm start: as the run starts." if whole else "Warm start: none, as in the run."
    if steps == 0:
        return f"Warm start: none here; the run makes {whole} steps first (doctor.warm_start_steps)."
    return f"Warm start: {steps} of {whole} steps; the run itself will start from a better policy."
