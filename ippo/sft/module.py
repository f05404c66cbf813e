"""Supervised fine-tuning on demonstrations: the warm start of PPO and its baseline."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, count, islice

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, RandomSampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from ippo.errors import OwnAttributeErrors, require
from ippo.functional import sft_loss
from ippo.models.attention import without_cudnn_attention
from ippo.models.projection import one_backward
from ippo.models.responses import response_logprobs
from ippo.rollout.sequences import Sequences

_BAD_STEPS = 5


@dataclass(frozen=True)
class SFTOptions:
    """How the warm start is trained.

    Args:
        steps: optimizer steps; 0 keeps the policy as it is.
        batch_size: demonstrations a step.
        learning_rate: peak, after ``warmup``, then falling linearly to a tenth.
        warmup: share of the steps over which the rate rises.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm.
        group_by_length: demonstrations of similar length go together, which spares padding where lengths differ much.
    """

    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-5
    warmup: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    group_by_length: bool = False

    def __post_init__(self) -> None:
        require(self.steps >= 0, "sft.steps", self.steps, "use 0 (no warm start) or more")
        require(self.batch_size >= 1, "sft.batch_size", self.batch_size, "use at least 1")
        require(self.learning_rate > 0, "sft.learning_rate", self.learning_rate, "use a number above 0")
        require(0 <= self.warmup < 1, "sft.warmup", self.warmup, "use a share of the steps, from 0 to below 1")


def demonstration_loss(policy: nn.Module, demonstrations: Sequences) -> Tensor:
    """[n] mean negative log-likelihood of each solution's tokens, the prompt not counted."""
    return sft_loss(response_logprobs(policy, demonstrations), demonstrations.response_mask)


class SFTModule(OwnAttributeErrors, L.LightningModule):
    """Plain supervised fine-tuning as a LightningModule with automatic optimisation.

    Args:
        policy: a causal language model.
        options: see :class:`SFTOptions`.

    A batch is a :class:`ippo.rollout.sequences.Sequences`; :func:`demonstration_loader` makes a loader of them.
    """

    def __init__(self, policy: nn.Module, options: SFTOptions = SFTOptions()) -> None:
        super().__init__()
        self.policy, self.options = policy, options
        self._skipped = 0  # steps in a row

    def on_fit_start(self) -> None:
        without_cudnn_attention()
        self.policy.train()  # Hugging Face models arrive in evaluation mode, and Lightning leaves them there

    @one_backward()
    def training_step(self, batch: Sequences, batch_idx: int) -> Tensor:
        loss = demonstration_loss(self.policy, batch).mean()
        self.log("sft/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip; a step whose gradient is not finite is not taken, and too many of them in a row end the training.

        Raises:
            UsageError: before NaN has reached a weight.
        """
        gradients = [one.grad for one in self.policy.parameters() if one.grad is not None]
        if bool(nn.utils.get_total_norm(gradients).isfinite()):
            self._skipped = 0
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        optimizer.zero_grad()  # parameters without a gradient are left as they are
        self._skipped += 1
        remedy = f"gradients were not finite, {_BAD_STEPS} steps in a row: lower it, or use --trainer.precision 32-true"
        require(self._skipped < _BAD_STEPS, "sft.learning_rate", self.options.learning_rate, remedy)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        options, steps = self.options, self.options.steps
        trainable = [p for p in self.policy.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=options.learning_rate, weight_decay=options.weight_decay)
        warmup = max(1, round(options.warmup * steps))

        def factor(step: int) -> float:
            return min((step + 1) / warmup, 0.1 + 0.9 * (steps - step) / max(1, steps - warmup))

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}


def demonstration_loader(demonstrations: Sequences, options: SFTOptions, seed: int) -> DataLoader[Sequences]:
    """As many shuffled, trimmed batches as there are steps: one Lightning epoch is the whole warm start."""
    places = range(len(demonstrations))
    order = torch.Generator().manual_seed(seed)
    size = options.steps * options.batch_size
    sampler: Iterable[int] = (
        _grouped(demonstrations, options.batch_size, size, order)
        if options.group_by_length
        else RandomSampler(places, num_samples=size, generator=order)
    )
    return DataLoader(
        places,  # type: ignore[arg-type]
        batch_size=options.batch_size,
        sampler=sampler,
        collate_fn=lambda rows: demonstrations.rows(torch.tensor(rows)).trim(),
    )


def _grouped(demonstrations: Sequences, batch_size: int, size: int, order: torch.Generator) -> list[int]:
    """``size`` places, each row once a pass, of which every ``batch_size`` are of similar length."""
    lengths = demonstrations.attention_mask.sum(1).tolist()
    passes = (get_length_grouped_indices(lengths, batch_size, generator=order) for _ in count())
    return list(islice(chain.from_iterable(passes), size))
