"""What is examined: the policy as a run would start from it, and episodes that it really sampled."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import lightning as L
import torch
from jsonargparse import Namespace
from torch import Tensor, nn

from ippo.data import Task
from ippo.data.demonstrations import encode_demonstrations, require_fit
from ippo.data.prompts import PromptDataModule, PromptOptions
from ippo.doctor.options import DoctorOptions
from ippo.episodes import Episodes
from ippo.errors import require
from ippo.influence import ExactScorer, Scorer, ValidationDirection
from ippo.models import SeparateModels
from ippo.models.loading import load_policy
from ippo.module import PPOModule
from ippo.recipes.tasks import load_task
from ippo.sequences import Sequences
from ippo.sft import SFTOptions, demonstration_loss
from ippo.warm_start import kept_at, warm_start

SMALL = 10_000_000  # parameters up to which a shortened warm start takes seconds


@dataclass(frozen=True)
class Patient:
    """A policy, a task, and what the one wrote for the other.

    Args:
        task: the problem set.
        module: the trainer's module, policy and options within.
        gold: the task's gold solutions, encoded.
        episodes: sampled by the policy on prompts of the task, rewarded and with their advantages.
        seconds: that their rollout took.
        prompts_per_iteration: of the run that is planned.
        history: how the policy came to be what it is, for the reader.
    """

    task: Task
    module: PPOModule
    gold: Sequences
    episodes: Episodes
    seconds: float
    prompts_per_iteration: int
    history: str

    @property
    def half(self) -> bool:
        """Whether the policy has less than float32 precision."""
        return self.module.model.policy.dtype in (torch.bfloat16, torch.float16)

    def score(
        self,
        episodes: Episodes,
        scorer: Scorer | None = None,
        gold: Sequences | None = None,
        policy: nn.Module | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        """[n] influence scores on the CPU, as the filter takes them unless it is told otherwise.

        Args:
            episodes: what is scored.
            scorer: how; exactly by default.
            gold: what the direction is made of; the whole gold set by default.
            policy: whose gradients; the patient's by default.
            batch_size: episodes at a time.
        """
        size = self.module.ppo.micro_batch_size
        gold, policy = self.gold if gold is None else gold, self.module.model.policy if policy is None else policy
        direction = ValidationDirection(gold.chunks(size), demonstration_loss)
        chunks = episodes.chunks(batch_size or size)
        return (scorer or ExactScorer()).score(policy, self.module.policy_losses, chunks, direction).cpu()


def admit(options: Namespace, doctor: DoctorOptions, say: Callable[[str], None]) -> Patient:
    """Load policy and task as the recipe does, and let the policy write.

    Args:
        options: of the recipe's parser.
        doctor: how much.
        say: told what is going on, line by line.

    Raises:
        UsageError: if the options do not fit each other, policy and task, as in the recipe.
    """
    seed = options.seed_everything
    L.seed_everything(seed, verbose=False)
    require(options.layout == "separate", "layout", options.layout, "use separate")
    task = load_task(options.task, options.embedded)
    texts = [row["prompt"] + row["solution"] for row in task.train]
    policy, tokenizer = load_policy(options.policy, texts, options.tiny, options.trust_remote_code)
    context = policy.config.max_position_embeddings
    require_fit(tokenizer, task, context, options.sampling.max_new_tokens)
    size = sum(parameter.numel() for parameter in policy.parameters())
    say(f"Task {task.name}: {len(task.train)} training problems, {len(task.gold)} gold solutions. {task.notice}")
    say(f"Policy {options.policy}: {size:,} parameters, {policy.dtype}.")

    whole = options.sft
    if kept_at(policy, tokenizer, task.train, whole, seed).is_dir():
        steps = whole.steps
    else:
        asked = doctor.warm_start_steps
        steps = min(whole.steps, (300 if size <= SMALL else 0) if asked is None else asked)
    shortened: SFTOptions = dataclasses.replace(whole, steps=steps)
    policy, _ = warm_start(policy, tokenizer, task.train, shortened, seed, options.trainer.accelerator, progress=False)
    history = tell_history(steps, whole.steps)
    say(history)

    L.seed_everything(seed, verbose=False)
    module = PPOModule(
        SeparateModels(policy), tokenizer, task.reward, task.check, options.ppo, options.sampling, options.evaluation
    ).eval()
    if options.trainer.accelerator != "cpu" and torch.cuda.is_available():
        module.to("cuda")
    gold = encode_demonstrations(tokenizer, task.gold, context, "gold").to(module.device)
    prompts = -(-doctor.episodes // options.ppo.samples_per_prompt)
    data = PromptDataModule(task, PromptOptions(prompts_per_iteration=prompts), seed)
    start = time.perf_counter()
    episodes = module.roll_out(next(iter(data.train_dataloader())))
    seconds = time.perf_counter() - start
    return Patient(task, module, gold, episodes, seconds, options.data.prompts_per_iteration, history)


def tell_history(steps: int, whole: int) -> str:
    """How the policy was warm-started for the examination.

    Example:
        >>> tell_history(300, 1500)
        'Warm start: 300 of 1500 steps; the run itself will start from a better policy.'
    """
    if steps == whole:
        return "Warm start: as the run starts." if whole else "Warm start: none, as in the run."
    if steps == 0:
        return f"Warm start: none here; the run makes {whole} steps first (doctor.warm_start_steps)."
    return f"Warm start: {steps} of {whole} steps; the run itself will start from a better policy."
