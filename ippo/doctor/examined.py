"""What is examined: a policy, a task, and what the one really wrote for the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ippo.data import Task
from ippo.data.demonstrations import encode_demonstrations
from ippo.data.prompts import PromptDataModule, PromptOptions
from ippo.influence import ExactScorer, Scorer, ValidationDirection
from ippo.influence.exact import Backend
from ippo.influence.parameters import Subset
from ippo.models.configuration import context_length
from ippo.ppo.module import PPOModule
from ippo.ppo.stopwatch import now
from ippo.rollout.episodes import Episodes
from ippo.rollout.sequences import Sequences
from ippo.sft import demonstration_loss


@dataclass(frozen=True)
class Examined:
    """A policy, a task, and what the one wrote for the other.

    Args:
        task: the problem set.
        module: the trainer's module, policy and options within.
        gold: the task's gold solutions, encoded.
        episodes: sampled by the policy on prompts of the task, rewarded and with their advantages.
        seconds: that their rollout took.
        prompts_per_iteration: of the run that is planned.
        parameters: by which the run's filter scores; None for all.
        mixed: whether it computes in bfloat16 with float32 weights.
    """

    task: Task
    module: PPOModule
    gold: Sequences
    episodes: Episodes
    seconds: float
    prompts_per_iteration: int
    parameters: Subset = None
    mixed: bool = False

    @property
    def coarse(self) -> bool:
        """Whether numbers agree to no more than half precision."""
        return self.half or self.mixed

    @property
    def half(self) -> bool:
        """Whether the policy has less than float32 precision."""
        return self.module.model.policy.dtype in (torch.bfloat16, torch.float16)

    def scorer(self, backend: Backend = "auto") -> ExactScorer:
        """Exact scores by the parameters that the run's filter scores by."""
        return ExactScorer(backend, parameters=self.parameters)

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
            scorer: how; exactly, by the filter's parameters, by default.
            gold: what the direction is made of; the whole gold set by default.
            policy: whose gradients; what is examined's by default.
            batch_size: episodes at a time.
        """
        size = self.module.ppo.micro_batch_size
        gold, policy = self.gold if gold is None else gold, self.module.model.policy if policy is None else policy
        direction = ValidationDirection(gold.chunks(size), demonstration_loss)
        chunks = episodes.chunks(batch_size or size)
        return (scorer or self.scorer()).score(policy, self.module.policy_losses, chunks, direction).cpu()


def let_write(
    task: Task,
    module: PPOModule,
    prompts_per_iteration: int,
    episodes: int,
    seed: int,
    parameters: Subset = None,
    mixed: bool = False,
) -> Examined:
    """Have the policy answer prompts of the run's first iteration.

    Args:
        task, module: what is examined.
        prompts_per_iteration: of the run that is planned.
        episodes: responses, rounded up to whole prompts.
        seed: of the run.
        parameters: by which its filter scores; None for all.
        mixed: whether the run computes in bfloat16 with float32 weights; then call this within such an autocast.
    """
    context = context_length(module.model.policy)
    gold = encode_demonstrations(module.tokenizer, task.gold, context, "task.gold", module.ends.closing)
    prompts = -(-episodes // module.ppo.samples_per_prompt)
    data = PromptDataModule(task, PromptOptions(prompts_per_iteration=prompts), seed)
    start = now(module.device)
    written = module.roll_out(next(iter(data.train_dataloader())))
    seconds = now(module.device) - start
    return Examined(task, module, gold.to(module.device), written, seconds, prompts_per_iteration, parameters, mixed)
