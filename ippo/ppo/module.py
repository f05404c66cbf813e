"""PPO as a LightningModule: one ``training_step`` is one iteration."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ippo.data.task import Check, Columns
from ippo.distributed import as_many_on_all_ranks, no_sync, rank, seed_each_rank, total, total_of, totals, world_size
from ippo.errors import OwnAttributeErrors
from ippo.events import emit
from ippo.functional import falling_factor, value_loss
from ippo.influence import ValidationDirection
from ippo.influence.directions import JudgedBy
from ippo.influence.sharding import at_rest
from ippo.models import ActorCritic
from ippo.models.attention import without_cudnn_attention
from ippo.models.projection import one_backward
from ippo.models.requirements import require_tokens
from ippo.models.sharding import ranks_of, shard
from ippo.ppo.curves import add_norms, add_up, rollout_curves, update_curves
from ippo.ppo.engine_gap import GapWarning, importance_of
from ippo.ppo.evaluation import Evaluation, seed_of
from ippo.ppo.gold import answered_gold, gold_share, mix_in_gold
from ippo.ppo.logprobs import LogprobPass, logprob_pass
from ippo.ppo.objective import PolicyObjective
from ippo.ppo.optimizer import optimizer_and_schedule, take_up_rates
from ippo.ppo.options import EvaluationOptions, PPOOptions
from ippo.ppo.requirements import require_before_training, require_parts, require_strategy, require_whole_distribution
from ippo.ppo.responses import Responses, arguments, decode, repeat
from ippo.ppo.stopwatch import stopwatch
from ippo.ppo.unfinished import UnfinishedWarning, with_ceiling
from ippo.ppo.usable import unrewarded_alone, usable
from ippo.rewards import Earned, Judge, RewardFunction, Rewards
from ippo.rollout.end_tokens import end_tokens
from ippo.rollout.engines.base import RolloutEngine
from ippo.rollout.engines.hf import HFGenerate
from ippo.rollout.episodes import Episodes
from ippo.rollout.sampling import Sampling
from ippo.sft import demonstration_loss


class PPOModule(OwnAttributeErrors, L.LightningModule):
    """PPO post-training of a language model.

    A batch holds one iteration's prompts and an epoch holds one batch, so that epochs are iterations: checkpoints,
    validation and TensorBoard's axis mean what a Lightning user expects. Everything that I-PPO adds is a callback that
    answers ``on_rollout_end`` with fewer or reweighted episodes.

    ``ippo.models.export(module.model, module.tokenizer, "trained")`` writes the trained policy as a plain Hugging Face
    directory.

    Args:
        model: policy, value and reference.
        tokenizer: the policy's tokenizer.
        reward: ``reward(prompts, completions, **columns) -> list[float]``, the signature known from TRL; or several
            such functions, whose weighted sum is earned (see :data:`ippo.rewards.RewardFunction`).
        check: the truth about completions, for curves only (see :data:`ippo.data.Check`).
        ppo, sampling, evaluation: options.
        engine: what samples responses; :class:`ippo.rollout.engines.hf.HFGenerate` by default.
        equal: ``equal(answer, other)``, whether two answers are one vote; the task's.
        reward_weights: one factor for each reward; 1 each by default.
        objective: ``objective(ppo, temperature)``, what is minimised on the policy's side and what the filter scores: a
            subclass of :class:`ippo.ppo.objective.PolicyObjective`.
    """

    def __init__(
        self,
        model: ActorCritic,
        tokenizer: PreTrainedTokenizerBase,
        reward: RewardFunction | Sequence[RewardFunction],
        check: Check,
        ppo: PPOOptions = PPOOptions(),
        sampling: Sampling = Sampling(),
        evaluation: EvaluationOptions = EvaluationOptions(),
        engine: RolloutEngine | None = None,
        equal: Callable[..., bool] = operator.eq,
        reward_weights: Sequence[float] | None = None,
        objective: Callable[[PPOOptions, float], PolicyObjective] = PolicyObjective,
    ) -> None:
        super().__init__()
        require_whole_distribution(sampling)
        require_tokens(model.policy, tokenizer)
        self.automatic_optimization = False
        self.model, self.tokenizer = model, tokenizer
        self.rewards, self.judge = Rewards(reward, reward_weights), Judge(check)
        self.ppo, self.sampling, self.evaluation = ppo, sampling, evaluation
        self.objective = objective(ppo, sampling.temperature)
        self.engine = engine if engine is not None else HFGenerate(tokenizer)
        self.validation, self.test = (
            Evaluation(evaluation.samples, equal, evaluation.reward) for _ in ("validation", "test")
        )
        self.ends = end_tokens(model.policy, tokenizer)
        self.stopping_reason_message: str | None = None
        self._unfinished, self._engine_gap = UnfinishedWarning(), GapWarning()

    # ---------------------------------------------------------------- one iteration, from top to bottom

    def training_step(self, batch: Columns, batch_idx: int) -> None:
        with stopwatch(self, "rollout"):
            rollout = self.roll_out(batch, emit_logprob_pass=True)
        if not total_of(len(rollout), self.device):
            emit(self.trainer, self, "on_update_start", rollout)  # none follows, but the episodes can be looked at
            self._learn_nothing(rollout)
            return
        curves = rollout_curves(rollout, self.rewards.names)
        for name, value in curves.items():
            self.log(name, value, prog_bar=name == "accuracy/em")
        self._unfinished.look_at(curves, self)
        self._engine_gap.look_at(curves)
        episodes = emit(self.trainer, self, "on_rollout_end", rollout)
        emit(self.trainer, self, "on_update_start", episodes)
        with stopwatch(self, "update"):
            self.update(episodes)
        self.lr_schedulers().step()  # type: ignore[union-attr]

    @torch.no_grad()
    def roll_out(self, batch: Columns, emit_logprob_pass: bool = False, judged_by: JudgedBy = "reward") -> Episodes:
        """Sample responses, judge and reward them, and work out their advantages.

        Args:
            batch: prompts and whatever the reward reads.
            emit_logprob_pass: let callbacks take the responses' log-probabilities in a pass of their own.
            judged_by: the training's reward, or the task's check.
        """
        responses = self._respond(batch, self.ppo.samples_per_prompt, self.sampling)
        earned, rewards = self._earned(responses, judged_by)
        look = LogprobPass(responses.sequences)
        if emit_logprob_pass:
            look = emit(self.trainer, self, "on_logprob_pass", look)
        old_logprobs, reference_logprobs, values = logprob_pass(self.model, look, self.ppo, self.sampling.temperature)
        at_rest(self.model)  # type: ignore[arg-type]
        count = len(responses.texts)
        episodes = Episodes(
            **vars(responses.sequences),
            prompts=responses.columns["prompt"],
            responses=responses.texts,
            rewards=rewards,
            groups=rank() * len(batch["prompt"])
            + torch.arange(count, device=self.device) // self.ppo.samples_per_prompt,
            old_logprobs=old_logprobs,
            reference_logprobs=reference_logprobs,
            values=values,
            advantages=torch.zeros_like(values),
            returns=torch.zeros_like(values),
            weights=torch.ones(count, dtype=torch.float32, device=self.device),
            importance=importance_of(self.engine, responses.sequences, old_logprobs, self.ppo),
            logprob_jvps=look.logprob_jvps,
            extras={**responses.verdicts.extras, **earned.extras},
        )
        return usable(episodes, earned, self.ppo)

    def _respond(self, batch: Columns, samples: int, sampling: Sampling) -> Responses:
        """Sample responses to each row of a batch, and judge them."""
        columns = repeat(batch, samples)
        sequences = self.engine.generate(self.model.policy, columns["prompt"], sampling)
        finished = self.ends.finished(sequences, sampling.max_new_tokens)
        texts = decode(self.tokenizer, sequences)
        verdicts = self.judge(finished.tolist(), **arguments(columns, texts))
        return Responses(columns, replace(sequences, finished=finished), texts, verdicts)

    def _earned(self, responses: Responses, judged_by: JudgedBy = "reward") -> tuple[Earned, Tensor]:
        """What the reward functions give to responses, or the check does, and [n] what each earns of it."""
        by_truth = judged_by == "check"
        earned = responses.verdicts.as_earned() if by_truth else self.rewards.to(self.device)(**responses.arguments)
        ceiling = self.ppo.unfinished_reward
        return earned, with_ceiling(earned.tensor.to(self.device), responses.finished, ceiling)

    @one_backward()
    def update(self, episodes: Episodes) -> None:
        """PPO epochs over the episodes that are left, in minibatches; every rank takes the same number of steps."""
        optimizer = self.optimizers()
        sums: dict[str, float] = defaultdict(float)
        first: dict[str, float] = {}  # the same sums after one step
        for _ in range(self.ppo.inner_epochs):
            for minibatch in self._on_all_ranks(episodes.minibatches(self.ppo.minibatch_size), episodes):
                size = self._size(minibatch)
                if not size:  # a step on it would only follow Adam's momentum
                    continue
                optimizer.zero_grad()  # type: ignore[union-attr]
                if self.ppo.ptx_coef:
                    mix_in_gold(self, self._gold, sums)
                chunks = minibatch.chunks(self.ppo.micro_batch_size, self.ppo.token_budget)
                micro_batches = self._on_all_ranks(chunks, minibatch)
                for place, micro in enumerate(micro_batches, start=1):  # gradients are added up once, at the last
                    with nullcontext() if place == len(micro_batches) else no_sync(self.trainer.strategy.model):
                        loss = self.loss(micro, sums) / size
                        self.manual_backward(loss * world_size())  # summed: Lightning averages gradients over the ranks
                first = first or dict(sums)
                if self._clip(sums):
                    optimizer.step()  # type: ignore[union-attr]
                else:
                    emit(self.trainer, self, "on_step_skipped", minibatch)
        self.log_dict(update_curves(totals(sums, self.device), totals(first, self.device)))
        if self.ppo.ptx_coef:
            self.log("ppo/ptx_coef", self.ptx_coef)

    def policy_losses(self, policy: nn.Module, episodes: Episodes) -> Tensor:
        """[n] PPO loss of each episode, before its weight; what the influence filter scores."""
        return self.objective.losses(policy, episodes)

    def loss(self, episodes: Episodes, sums: dict[str, float]) -> Tensor:
        """Sum of the episodes' policy and value losses; what the curves show adds up in ``sums``."""
        ppo, mask = self.ppo, episodes.response_mask
        policy, logprobs = self.objective.terms(self.model.policy, episodes)
        value = torch.zeros_like(policy)
        if ppo.uses_values:
            values = self.model.values(episodes)
            value = value_loss(values, episodes.values, episodes.returns, mask, ppo.value_clip, ppo.reduction)
        add_up(sums, episodes, policy, value, logprobs, ppo)
        return (episodes.weights * policy).sum() + ppo.value_coef * value[episodes.weights > 0].sum()

    def _learn_nothing(self, rollout: Episodes) -> None:
        """Go on where no reward applied to anything; else something is broken."""
        if total_of(unrewarded_alone(rollout) is False, self.device):
            self.stop("no episode has finite log-probabilities, values and reward: the model or the reward is broken")
        else:
            rank_zero_warn(f"iteration {self.current_epoch}: no reward applies to any of its episodes")
            self.lr_schedulers().step()  # type: ignore[union-attr]

    @property
    def ptx_coef(self) -> float:
        """The factor of the gold solutions' loss in the present iteration."""
        falls = falling_factor(self.current_epoch, self.trainer.max_epochs or 0, self.ppo.ptx_schedule)
        return self.ppo.ptx_coef * falls

    def _on_all_ranks(self, parts: list[Episodes], buffer: Episodes) -> list[Episodes]:
        """The parts of a buffer, filled up with weightless ones where another rank has more."""
        return as_many_on_all_ranks(parts, buffer.weightless, self.device)

    def _size(self, minibatch: Episodes) -> Tensor:
        """What the minibatch's sum of losses is divided by: its episodes that count, or their tokens, on all ranks."""
        share = torch.ones_like(minibatch.lengths) if self.ppo.reduction == "mean" else minibatch.lengths
        return total(share[minibatch.weights > 0].sum())

    def _clip(self, sums: dict[str, float]) -> bool:
        """Clip the gradients of policy and value, each to the norm that is allowed; whether both are finite."""
        norms = {
            name: nn.utils.clip_grad_norm_(parameters, self.ppo.max_grad_norm)
            for name, parameters in self.model.parameter_groups().items()
            if any(one.requires_grad for one in parameters)
        }
        return add_norms(sums, norms)

    # ---------------------------------------------------------------- validation and test

    def validation_step(self, batch: Columns, batch_idx: int) -> None:
        self._evaluate(self.validation, batch, batch_idx)

    def test_step(self, batch: Columns, batch_idx: int) -> None:
        self._evaluate(self.test, batch, batch_idx)

    @torch.no_grad()
    def _evaluate(self, evaluation: Evaluation, batch: Columns, batch_idx: int) -> None:
        """Draw k answers a prompt, decode one greedily, and hold them against the truth."""
        sampling = replace(self.sampling, temperature=self.evaluation.temperature, top_p=self.evaluation.top_p)
        with isolate_rng():  # how often a run is judged must not change what it learns
            torch.manual_seed(seed_of(batch["prompt"], batch_idx, self.evaluation.seed))
            responses = self._respond(batch, self.evaluation.samples, sampling)
            greedy = self._respond(batch, 1, replace(sampling, temperature=0.0))
            if self.evaluation.reward:
                evaluation.update_reward(self._earned(responses)[1])
        at_rest(self.model)  # type: ignore[arg-type]
        evaluation.update(responses.verdicts, batch)
        evaluation.update_greedy(greedy.verdicts)
        emit(self.trainer, self, "on_answers", responses.table)

    def on_validation_epoch_start(self) -> None:
        self.validation.reset()  # trainer.validate leaves tensors of inference mode, which fit cannot add to

    def on_validation_epoch_end(self) -> None:
        self._log_shares("val", self.validation)
        inside = self.trainer.state.fn == TrainerFn.FITTING  # its iteration is done, but not counted yet
        self.log("step", float(self.current_epoch + inside), batch_size=1, sync_dist=True)  # the axis of these curves

    def on_test_epoch_end(self) -> None:
        self._log_shares("test", self.test)

    def _log_shares(self, stage: str, evaluation: Evaluation) -> None:
        """A share of nothing, as of the unfaithful where no answer is right, has no point in its curve."""
        for name, metric in evaluation.metrics.items():
            if metric.compute().isnan():  # of all ranks together
                metric.reset()
            else:
                self.log(f"{stage}/{name}", metric, prog_bar=name == "em")

    # ---------------------------------------------------------------- what callbacks and the trainer ask for

    @property
    def scored_module(self) -> nn.Module:
        """The module whose trainable parameters the influence filter scores."""
        return self.model.policy

    def validation_direction(self) -> ValidationDirection:
        """The direction of I-PPO: the gradient of the mean SFT loss on the data module's gold solutions."""
        chunks = gold_share(self, "direction").chunks(self.ppo.micro_batch_size, self.ppo.token_budget)
        return ValidationDirection(chunks, demonstration_loss)

    def validation_rollout(self, judged_by: JudgedBy = "reward") -> list[Episodes]:
        """Fresh episodes on the gold problems, as many of them as an iteration has prompts, each rank its share."""
        return answered_gold(self, judged_by).chunks(self.ppo.micro_batch_size, self.ppo.token_budget)

    def stop(self, reason: str) -> None:
        """End training after this iteration, and say why."""
        rank_zero_warn(f"training ends after this iteration: {reason}")
        self.stopping_reason_message = reason
        self.trainer.should_stop = True

    def configure_model(self) -> None:
        """Under a strategy that has a mesh of ranks (FSDP2), each keeps its share of the models."""
        if self.device_mesh is not None:
            shard(self.model, ranks_of(self.device_mesh))  # type: ignore[arg-type]

    def setup(self, stage: str) -> None:
        require_strategy(self.trainer.strategy)
        require_parts(self.model, self.ppo)
        if not self.ppo.uses_values:
            for parameter in self.model.parameter_groups()["value"]:
                parameter.requires_grad_(False)  # no optimizer state, and no gradient that another rank waits for

    def on_fit_start(self) -> None:
        without_cudnn_attention()
        self.stopping_reason_message = None
        require_before_training(self)
        seed_each_rank()  # each rank draws its own responses
        if self.ppo.ptx_coef:
            self._gold = gold_share(self, "training")

    def on_train_start(self) -> None:
        take_up_rates(self.optimizers().optimizer, self.lr_schedulers(), self.ppo)  # type: ignore[union-attr]

    def on_train_epoch_start(self) -> None:
        self.eval()  # no dropout: the first inner step must find the log-probabilities of the rollout again

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return optimizer_and_schedule(self.model, self.ppo, self.trainer.max_epochs or 0)
