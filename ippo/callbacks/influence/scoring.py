"""A filter's scores in a running training: of a buffer, of a batch, or in the pass that PPO makes anyway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch
from torch import Tensor

from ippo.callbacks.influence.held_direction import HeldDirection
from ippo.callbacks.influence.one_pass import (
    fits_one_pass,
    token_scores,
    with_jvps,
    with_token_scores,
    without_opposing_tokens,
)
from ippo.influence import Scorer
from ippo.ppo.logprobs import LogprobPass
from ippo.rollout.episodes import Episodes


@dataclass(frozen=True)
class Scoring:
    """How rows come by their scores. Options as of :class:`ippo.callbacks.InfluenceFilterCallback`.

    Args:
        module: the LightningModule that trains.
        scorer: computes the scores.
        direction: what the scores are held against.
        losses: ``losses(module, rows) -> [n]``; None for the module's ``policy_losses``.
        batch_size: episodes of a buffer at a time.
        one_pass: whether a pass of PPO's own may be used.
        keep_tokens: note each token's part of the score.
    """

    module: Any
    scorer: Scorer
    direction: HeldDirection
    losses: Callable[..., Any] | None
    batch_size: int
    one_pass: bool
    keep_tokens: bool = False

    @property
    def in_one_pass(self) -> bool:
        """Whether the scores come with the old log-probabilities."""
        wanted = self.one_pass and self.losses is None and not self.direction.needs_buffer
        return wanted and fits_one_pass(self.module, self.scorer)

    def logprob_pass(self, look: LogprobPass, batch: int) -> LogprobPass:
        """Old log-probabilities with their jvps, from which :meth:`of_buffer` makes the scores."""
        module = scored_module(self.module)
        self.scorer.observe(module, _learning_rate(self.module))
        along = self.direction.at(module, batch)
        return with_jvps(self.module, self.scorer, look, along, self.batch_size)

    def of_buffer(self, buffer: Any, batch: int) -> tuple[Any, Tensor]:
        """[n] scores of a buffer, and the buffer with what is noted of its tokens.

        Args:
            buffer: :class:`ippo.Episodes`, or whatever the losses take, whole or with ``chunks``.
            batch: number of the training batch.
        """
        if isinstance(buffer, Episodes) and self.in_one_pass:
            if buffer.logprob_jvps is None:  # another filter took the log-probability pass
                buffer = replace(buffer, logprob_jvps=self.logprob_pass(LogprobPass(buffer), batch).logprob_jvps)
            tokens = token_scores(self.module, buffer)
            buffer = with_token_scores(self.module, buffer, tokens) if self.keep_tokens else buffer
            return buffer, tokens.sum(1)
        if isinstance(buffer, Episodes):
            budget = getattr(getattr(self.module, "ppo", None), "micro_batch_tokens", None)
            batches, order = buffer.parts(self.batch_size, budget)
            return buffer, self.of_batches(batches, batch)[order]
        chunks = buffer.chunks(self.batch_size) if hasattr(buffer, "chunks") else [buffer]
        return buffer, self.of_batches(chunks, batch)

    def silenced(self, episodes: Episodes) -> Episodes:
        """The same episodes, scored in one pass, without an advantage for the tokens that score below zero."""
        return without_opposing_tokens(episodes, token_scores(self.module, episodes))

    def of_batches(self, batches: list[Any], batch: int) -> Tensor:
        """[n] scores of micro-batches, in their order."""
        module = scored_module(self.module)
        losses = self.losses if self.losses is not None else self.module.policy_losses
        self.scorer.observe(module, _learning_rate(self.module))
        along = self.direction.at(module, batch)
        device = self.module.device
        with torch.autocast(device.type, enabled=False):  # under mixed precision, too, in the parameters' own
            return self.scorer.score(module, losses, batches, along).to(device)


def scored_module(module: Any) -> Any:
    """What the module says is scored; itself where it says nothing."""
    return getattr(module, "scored_module", module)


def _learning_rate(module: L.LightningModule) -> float:
    """The rate of the step that follows: that of the first parameter group; 1 where there is no single optimizer."""
    optimizer = module.optimizers()
    return float(optimizer.param_groups[0]["lr"]) if isinstance(optimizer, torch.optim.Optimizer) else 1.0
