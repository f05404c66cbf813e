"""Load what is examined: the task, and the policy as a run would start from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import lightning as L
import torch
from jsonargparse import Namespace

from ippo.data import Task
from ippo.errors import require
from ippo.models import SeparateModels
from ippo.module import PPOModule
from ippo.recipes import commonsense, math, physics
from ippo.recipes.run import build_module, load
from ippo.warm_start import kept_at, warm_start

TASKS = (*math.RECIPE.tasks, *physics.RECIPE.tasks, *commonsense.RECIPE.tasks)
SMALL = 10_000_000  # parameters up to which a shortened warm start takes seconds


def admit(options: Namespace, say: Callable[[str], None]) -> tuple[Task, PPOModule]:
    """Load task and policy as the recipe does, warm start included.

    Args:
        options: of the recipe's parser, and the doctor's own.
        say: told what was loaded, line by line.

    Raises:
        UsageError: if the options do not fit each other, policy and task, as in the recipe.
    """
    seed = options.seed_everything
    L.seed_everything(seed, verbose=False)
    require(options.layout == "separate", "layout", options.layout, "use separate")
    task, policy, tokenizer = load(options, TASKS)
    size = sum(parameter.numel() for parameter in policy.parameters())

    kept = kept_at(policy, tokenizer, task.train, options.sft, seed).is_dir()
    steps = options.sft.steps if kept else affordable(options.sft.steps, size, options.doctor.warm_start_steps)
    sft = dataclasses.replace(options.sft, steps=steps)
    policy, _ = warm_start(policy, tokenizer, task.train, sft, seed, options.trainer.accelerator, progress=False)
    say(history(steps, options.sft.steps))

    L.seed_everything(seed, verbose=False)
    module = build_module(SeparateModels(policy), tokenizer, task, options)
    gpu = options.trainer.accelerator != "cpu" and torch.cuda.is_available()
    return task, module.to("cuda" if gpu else "cpu").eval()


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


def history(steps: int, whole: int) -> str:
    """How the policy was warm-started for the examination.

    Example:
        >>> history(300, 1500)
        'Warm start: 300 of 1500 steps; the run itself will start from a better policy.'
    """
    if steps == whole:
        return "Warm start: as the run starts." if whole else "Warm start: none, as in the run."
    if steps == 0:
        return f"Warm start: none here; the run makes {whole} steps first (doctor.warm_start_steps)."
    return f"Warm start: {steps} of {whole} steps; the run itself will start from a better policy."
