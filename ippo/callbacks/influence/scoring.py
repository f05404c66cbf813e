"""A filter's scores in a running training: of a buffer, of a batch, or in the pass that PPO makes anyway."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from ippo.callbacks.influence.held_direction import HeldDirection
from ippo.callbacks.influence.one_pass import (
    token_scores,
    with_jvps,
    with_token_scores,
    without_opposing_tokens,
)
from ippo.callbacks.influence.options import FilterOptions
from ippo.callbacks.influence.route import Route, choose_route
from ippo.errors import require
from ippo.influence import Scorer
from ippo.influence.choice import COSTS
from ippo.ppo.logprobs import LogprobPass
from ippo.rollout.episodes import Episodes


@dataclass(frozen=True)
class Scoring:
    """How rows come by their scores.

    Args:
        module: the LightningModule that trains.
        scorer: computes the scores.
        direction: what the scores are held against.
        options: the filter's.
    """

    module: Any
    scorer: Scorer
    direction: HeldDirection
    options: FilterOptions
    _told: set[str] = field(default_factory=set)

    def begin(self) -> None:
        """Decide which way a buffer is scored, and tell it.

        Raises:
            UsageError: if scores of tokens are asked for where there are none, or the scorer cannot score the module.
        """
        options = self.options
        self.scorer.check(scored_module(self.module))
        for option, asked in (("token_scores", options.token_scores), ("drop_tokens", options.drop_tokens)):
            remedy = (
                "it needs one_pass, ExactScorer('auto') or LookaheadScorer, and a direction apart from the buffer; "
                f"here {self.route}"
            )
            require(not asked or self.route.uses_jvps, option, True, remedy)
        if hasattr(self.module, "objective"):  # else there is one way only
            self._tell(str(self.route))

    @property
    def batch_size(self) -> int:
        """Episodes of a buffer at a time."""
        return self.options.batch_size or int(getattr(getattr(self.module, "ppo", None), "micro_batch_size", 64))

    @cached_property
    def route(self) -> Route:
        """Of a buffer of the module's own episodes."""
        if self.options.losses is not None:
            return Route("apart", "the losses are not the module's own")
        if self.direction.needs_buffer:
            return Route("apart", "the direction is made of the episodes")
        if not self.options.one_pass:
            return Route("apart", "one_pass is off")
        return choose_route(self.module, self.scorer, self.options.token_scores or self.options.drop_tokens)

    @property
    def in_one_pass(self) -> bool:
        """Whether the scores come with the old log-probabilities."""
        return self.route.way == "one pass"

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
        if isinstance(buffer, Episodes) and self.route.uses_jvps:
            if buffer.logprob_jvps is None:  # they are taken apart, or another filter took the log-probability pass
                buffer = replace(buffer, logprob_jvps=self.logprob_pass(LogprobPass(buffer), batch).logprob_jvps)
            tokens = token_scores(self.module, buffer)
            buffer = with_token_scores(self.module, buffer, tokens) if self.options.token_scores else buffer
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
        given = self.options.losses
        losses = given if given is not None else self.module.policy_losses
        self.scorer.observe(module, _learning_rate(self.module))
        along = self.direction.at(module, batch)
        scores = self.scorer.score(module, losses, batches, along).to(self.module.device)
        backend, _, why = self.scorer.choice.partition(": ")
        if backend in COSTS:
            slow = backend == "loop" and why != "it was asked for"
            self._tell(f"scored by {self.scorer.choice}. This takes {COSTS[backend]}", warn=slow)
        return scores

    def _tell(self, what: str, warn: bool = False) -> None:
        """Once."""
        if what not in self._told:
            self._told.add(what)
            (rank_zero_warn if warn else rank_zero_info)(f"{self.options.name}: {what}.")


def scored_module(module: Any) -> Any:
    """What the module says is scored; itself where it says nothing."""
    return getattr(module, "scored_module", module)


def _learning_rate(module: L.LightningModule) -> float:
    """The rate of the step that follows: that of the first parameter group; 1 where there is no single optimizer."""
    optimizer = module.optimizers()
    return float(optimizer.param_groups[0]["lr"]) if isinstance(optimizer, torch.optim.Optimizer) else 1.0
