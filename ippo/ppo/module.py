"""PPO as a LightningModule: one ``training_step`` is one iteration."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase

from ippo.data.demonstrations import encode_demonstrations, require_fit
from ippo.data.task import Check, Columns, columns
from ippo.distributed import as_many_on_all_ranks, no_sync, rank, seed_each_rank, total, total_of, totals, world_size
from ippo.errors import OwnAttributeErrors, require
from ippo.events import emit
from ippo.functional import clip_fraction, kl_loss, rate_factor, value_loss
from ippo.influence import ValidationDirection
from ippo.models import ActorCritic
from ippo.models.attention import without_cudnn_attention
from ippo.models.configuration import context_length
from ippo.models.requirements import require_tokens
from ippo.ppo.advantages import with_advantages
from ippo.ppo.curves import rollout_curves, update_curves
from ippo.ppo.evaluation import Evaluation
from ippo.ppo.logprobs import LogprobPass, logprob_pass
from ippo.ppo.objective import PolicyObjective
from ippo.ppo.options import EvaluationOptions, PPOOptions
from ippo.ppo.stopwatch import stopwatch
from ippo.rewards import RewardFunction
from ippo.rollout.end_tokens import end_tokens
from ippo.rollout.engines.base import RolloutEngine
from ippo.rollout.engines.hf import HFGenerate
from ippo.rollout.episodes import Episodes
from ippo.rollout.sampling import Sampling
from ippo.rollout.sequences import Sequences
from ippo.sft import demonstration_loss


class PPOModule(OwnAttributeErrors, L.LightningModule):
    """PPO post-training of a language model.

    A batch holds one iteration's prompts and an epoch holds one batch, so that epochs are iterations: checkpoints,
    validation and TensorBoard's axis mean what a Lightning user expects. Everything that I-PPO adds is a callback that
    answers ``on_rollout_end`` with fewer or reweighted episodes.

    Args:
        model: policy, value and reference.
        tokenizer: the policy's tokenizer.
        reward: ``reward(prompts, completions, **columns) -> list[float]``, the signature known from TRL.
        check: the truth about completions, for curves only (see :data:`ippo.data.Check`).
        ppo, sampling, evaluation: options.
        engine: what samples responses; :class:`ippo.rollout.engines.hf.HFGenerate` by default.
        equal: ``equal(answer, other)``, whether two answers are one vote; the task's.
    """

    def __init__(
        self,
        model: ActorCritic,
        tokenizer: PreTrainedTokenizerBase,
        reward: RewardFunction,
        check: Check,
        ppo: PPOOptions = PPOOptions(),
        sampling: Sampling = Sampling(),
        evaluation: EvaluationOptions = EvaluationOptions(),
        engine: RolloutEngine | None = None,
        equal: Callable[[str, str], bool] = operator.eq,
    ) -> None:
        super().__init__()
        require(
            sampling.top_p == 1.0, "sampling.top_p", sampling.top_p, "PPO's ratios need the full distribution: use 1.0"
        )
        temperature = sampling.temperature
        require(
            temperature > 0, "sampling.temperature", temperature, "PPO learns from what is drawn: use a number above 0"
        )
        require_tokens(model.policy, tokenizer)
        self.automatic_optimization = False
        self.model, self.tokenizer, self.reward, self.check = model, tokenizer, reward, check
        self.ppo, self.sampling, self.evaluation = ppo, sampling, evaluation
        self.objective = PolicyObjective(ppo, sampling.temperature)
        self.engine = engine if engine is not None else HFGenerate(tokenizer)
        self.validation, self.test = (Evaluation(evaluation.samples, equal) for _ in ("validation", "test"))
        self.ends = end_tokens(model.policy, tokenizer)
        self.stopping_reason_message: str | None = None

    # ---------------------------------------------------------------- one iteration, from top to bottom

    def training_step(self, batch: Columns, batch_idx: int) -> None:
        with stopwatch(self, "rollout"):
            rollout = self.roll_out(batch, emit_logprob_pass=True)
        if not total_of(len(rollout), self.device):
            emit(self.trainer, self, "on_update_start", rollout)  # none follows, but the episodes can be looked at
            self.stop("no episode has finite log-probabilities, values and reward: the model or the reward is broken")
            return
        for name, value in rollout_curves(rollout).items():
            self.log(name, value, prog_bar=name == "accuracy/em")
        episodes = emit(self.trainer, self, "on_rollout_end", rollout)
        emit(self.trainer, self, "on_update_start", episodes)
        with stopwatch(self, "update"):
            self.update(episodes)
        self.lr_schedulers().step()  # type: ignore[union-attr]

    @torch.no_grad()
    def roll_out(self, batch: Columns, emit_logprob_pass: bool = False) -> Episodes:
        """Sample responses, reward them, and work out their advantages. Unfinished responses earn nothing.

        Args:
            batch: prompts and whatever the reward reads.
            emit_logprob_pass: let callbacks take the responses' log-probabilities in a pass of their own.
        """
        columns = _repeat(batch, self.ppo.samples_per_prompt)
        sequences = self.engine.generate(self.model.policy, columns["prompt"], self.sampling)
        finished = self.ends.finished(sequences, self.sampling.max_new_tokens)
        texts = decode(self.tokenizer, sequences)
        given = self.reward(**_arguments(columns, texts))
        require(len(given) == len(texts), "reward", f"{len(given)} rewards", f"return one for each of {len(texts)}")
        rewards = torch.tensor(given, dtype=torch.float32, device=self.device)
        look = LogprobPass(sequences)
        if emit_logprob_pass:
            look = emit(self.trainer, self, "on_logprob_pass", look)
        old_logprobs, reference_logprobs, values = logprob_pass(self.model, look, self.ppo, self.sampling.temperature)
        episodes = Episodes(
            **{**vars(sequences), "finished": finished},
            prompts=columns["prompt"],
            responses=texts,
            rewards=rewards * finished,
            groups=rank() * len(batch["prompt"])
            + torch.arange(len(texts), device=self.device) // self.ppo.samples_per_prompt,
            old_logprobs=old_logprobs,
            reference_logprobs=reference_logprobs,
            values=values,
            advantages=torch.zeros_like(values),
            returns=torch.zeros_like(values),
            weights=torch.ones(len(texts), dtype=torch.float32, device=self.device),
            logprob_jvps=look.logprob_jvps,
            extras=self.check(**_arguments(columns, texts)),
        )
        usable = (torch.isfinite(old_logprobs + reference_logprobs + values) | ~sequences.response_mask).all(1)
        episodes = episodes.select(usable & torch.isfinite(rewards), "a log-probability, value or reward is not finite")
        episodes = episodes.select(episodes.lengths > 0, "the response has no token that could be learned from")
        episodes = with_advantages(episodes, self.ppo)
        usable = (torch.isfinite(episodes.advantages + episodes.returns) | ~episodes.response_mask).all(1)
        return episodes.select(usable, "an advantage is not finite: a reward or value is too large")

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
                    self._mix_in_gold(sums)
                chunks = minibatch.chunks(self.ppo.micro_batch_size, self.ppo.micro_batch_tokens)
                micro_batches = self._on_all_ranks(chunks, minibatch)
                for place, micro in enumerate(micro_batches, start=1):  # gradients are added up once, at the last
                    with nullcontext() if place == len(micro_batches) else no_sync(self.trainer.strategy.model):
                        loss = self.loss(micro, sums) / size
                        self.manual_backward(loss * world_size())  # summed: Lightning averages gradients over the ranks
                first = first or dict(sums)
                if self._clip():
                    optimizer.step()  # type: ignore[union-attr]
                else:
                    emit(self.trainer, self, "on_step_skipped", minibatch)
        self.log_dict(update_curves(totals(sums, self.device), totals(first, self.device)))

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
        counted = episodes.weights > 0
        with torch.no_grad():
            logprobs, old = logprobs.detach(), episodes.old_logprobs
            clipped = clip_fraction(logprobs, old, mask, ppo.clip_low, ppo.clip_high)
            moved = kl_loss(logprobs, old, mask, "k3")
            for name, each in (
                ("policy_loss", policy),
                ("value_loss", value),
                ("clip_fraction", clipped),
                ("policy_step", moved),
            ):
                sums[name] += float(each.detach()[counted].sum())
            sums["episodes"] += int(counted.sum())
            sums["tokens"] += int(episodes.lengths[counted].sum())
        return (episodes.weights * policy).sum() + ppo.value_coef * value[counted].sum()

    def _mix_in_gold(self, sums: dict[str, float]) -> None:
        """Add the gradient of the SFT loss of some gold solutions, drawn at random (PPO-ptx); the losses add up in
        ``sums`` for the curves."""
        rows = self._gold.rows(torch.randint(len(self._gold), (self.ppo.ptx_batch_size,)))
        with no_sync(self.trainer.strategy.model):
            for micro in rows.chunks(self.ppo.micro_batch_size, self.ppo.micro_batch_tokens):
                losses = demonstration_loss(self.model.policy, micro)
                self.manual_backward(self.ppo.ptx_coef * losses.sum() / len(rows))
                sums["ptx_loss"] += float(losses.detach().sum())
        sums["ptx_rows"] += len(rows)

    def _on_all_ranks(self, parts: list[Episodes], buffer: Episodes) -> list[Episodes]:
        """The parts of a buffer, filled up with weightless ones where another rank has more."""
        return as_many_on_all_ranks(parts, buffer.weightless, self.device)

    def _size(self, minibatch: Episodes) -> Tensor:
        """What the minibatch's sum of losses is divided by: its episodes that count, or their tokens, on all ranks."""
        share = torch.ones_like(minibatch.lengths) if self.ppo.reduction == "mean" else minibatch.lengths
        return total(share[minibatch.weights > 0].sum())

    def _clip(self) -> bool:
        """Clip the gradients of policy and value, each to the norm that is allowed; whether both are finite."""
        groups = self.model.parameter_groups().values()
        norms = [nn.utils.clip_grad_norm_(parameters, self.ppo.max_grad_norm) for parameters in groups]
        return all(bool(norm.isfinite()) for norm in norms)

    # ---------------------------------------------------------------- validation and test

    def validation_step(self, batch: Columns, batch_idx: int) -> None:
        self._judge("val", self.validation, batch, batch_idx)

    def test_step(self, batch: Columns, batch_idx: int) -> None:
        self._judge("test", self.test, batch, batch_idx)

    @torch.no_grad()
    def _judge(self, stage: str, judge: Evaluation, batch: Columns, batch_idx: int) -> None:
        """Draw k answers a prompt, decode one greedily, and hold them against the truth."""
        columns = _repeat(batch, self.evaluation.samples)
        sampling = replace(self.sampling, temperature=self.evaluation.temperature, top_p=self.evaluation.top_p)
        with isolate_rng():  # how often a run is judged must not change what it learns
            if batch_idx:  # each batch starts from the same state, and must not draw the same numbers
                torch.manual_seed(int(torch.randint(2**31, ())) + batch_idx)
            sequences = self.engine.generate(self.model.policy, columns["prompt"], sampling)
            greedy = self.engine.generate(self.model.policy, batch["prompt"], replace(sampling, temperature=0.0))
        texts = decode(self.tokenizer, sequences)
        truth = self.check(**_arguments(columns, texts))
        judge.update(truth["answer"], batch["answer"], truth["correct"], truth["chain"])
        judge.update_greedy(self.check(**_arguments(batch, decode(self.tokenizer, greedy)))["correct"])
        emit(self.trainer, self, "on_answers", {**columns, "response": texts, "gold": columns["answer"], **truth})
        for name, metric in judge.metrics.items():
            self.log(f"{stage}/{name}", metric, batch_size=len(batch["prompt"]), prog_bar=name == "em")

    # ---------------------------------------------------------------- what callbacks and the trainer ask for

    @property
    def scored_module(self) -> nn.Module:
        """The module whose trainable parameters the influence filter scores."""
        return self.model.policy

    def validation_direction(self) -> ValidationDirection:
        """The direction of I-PPO: the gradient of the mean SFT loss on the data module's gold solutions."""
        chunks = self._gold_share().chunks(self.ppo.micro_batch_size, self.ppo.micro_batch_tokens)
        return ValidationDirection(chunks, demonstration_loss)

    def validation_rollout(self) -> list[Episodes]:
        """Fresh episodes on the gold problems, as many of them as an iteration has prompts, each rank its share."""
        data = self._prompt_data()
        rows = list(data.gold)[: data.options.prompts_per_iteration]
        require(len(rows) >= world_size(), "task.gold", len(rows), f"give each of the {world_size()} ranks a problem")
        rows = rows[rank() :: world_size()]
        return self.roll_out(columns(rows)).chunks(self.ppo.micro_batch_size, self.ppo.micro_batch_tokens)

    def stop(self, reason: str) -> None:
        """End training after this iteration, and say why."""
        self.stopping_reason_message = reason
        self.trainer.should_stop = True

    def setup(self, stage: str) -> None:
        if not self.ppo.uses_values:
            for parameter in self.model.parameter_groups()["value"]:
                parameter.requires_grad_(False)  # no optimizer state, and no gradient that another rank waits for

    def on_fit_start(self) -> None:
        without_cudnn_attention()
        self.stopping_reason_message = None
        precision = self.trainer.precision
        remedy = "its loss scaler would have to see gradients before they are clipped and checked: use bf16-mixed"
        require(precision != "16-mixed", "trainer.precision", precision, remedy)
        for name, parameters in self.model.parameter_groups().items():
            found = {str(one.dtype) for one in parameters if one.dtype not in (torch.float32, torch.float64)}
            remedy = (
                "small steps are lost in it: load the model in torch.float32; trainer.precision=bf16-mixed saves time"
            )
            require(not found, name, ", ".join(found), remedy)
        seed_each_rank()  # each rank draws its own responses
        if task := getattr(getattr(self.trainer, "datamodule", None), "task", None):
            require_fit(self.tokenizer, task, context_length(self.model.policy), self.sampling.max_new_tokens)
        if self.ppo.ptx_coef:
            self._gold = self._gold_share()
            remedy = f"ppo.ptx_coef draws from it: give each of the {world_size()} ranks a solution"
            require(len(self._gold) > 0, "task.gold", "too few", remedy)

    def _gold_share(self) -> Sequences:
        """This rank's share of the gold solutions."""
        context = context_length(self.model.policy)
        gold = encode_demonstrations(self.tokenizer, self._prompt_data().gold, context, "gold", self.ends.closing)
        return gold.rows(torch.arange(rank(), len(gold), world_size())).to(self.device)

    def _prompt_data(self) -> Any:
        """The data module that knows the gold solutions.

        Raises:
            UsageError: if the trainer has none that does.
        """
        data = getattr(self.trainer, "datamodule", None)
        remedy = (
            "the gold solutions come from it: fit with a PromptDataModule, or give the filter a direction of its own"
        )
        require(hasattr(data, "gold"), "datamodule", type(data).__name__, remedy)
        return data

    def on_train_epoch_start(self) -> None:
        self.eval()  # no dropout: the first inner step must find the log-probabilities of the rollout again

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        ppo = self.ppo
        rates = {"policy": ppo.learning_rate, "value": ppo.value_learning_rate}
        groups = [
            {"params": params, "lr": rates[name], "name": name}
            for name, params in self.model.parameter_groups().items()
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        factor = partial(rate_factor, of=self.trainer.max_epochs or 0, warmup=ppo.warmup, schedule=ppo.schedule)
        return {"optimizer": optimizer, "lr_scheduler": LambdaLR(optimizer, factor)}


def decode(tokenizer: PreTrainedTokenizerBase, sequences: Sequences) -> list[str]:
    """The responses as texts, without special tokens."""
    real = [ids[mask] for ids, mask in zip(sequences.response_ids, sequences.response_mask, strict=True)]
    return tokenizer.batch_decode(real, skip_special_tokens=True)


def _repeat(batch: Columns, times: int) -> Columns:
    """Each row ``times`` times in a row."""
    return {key: [value for value in values for _ in range(times)] for key, values in batch.items()}


def _arguments(columns: Columns, completions: list[str]) -> dict[str, list[Any]]:
    """Columns and completions under the names that rewards and checks take."""
    others = {key: values for key, values in columns.items() if key != "prompt"}
    return {"prompts": columns["prompt"], "completions": completions, **others}
