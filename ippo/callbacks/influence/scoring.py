"""How rows come by their scores in a running training.

Of batches, and of any buffer, a scorer scores the losses. Of PPO's own episodes there is another way, where
:mod:`ippo.callbacks.influence.route` has decided for it: their losses depend on the parameters through the
log-probabilities alone, so that the score of an episode is the sum, over its tokens, of dloss / dlogprob times the
derivative (jvp) of the log-probability along the direction.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.nn import functional

from ippo.callbacks.influence.held_direction import HeldDirection
from ippo.callbacks.influence.options import FilterOptions
from ippo.callbacks.influence.route import choose_route
from ippo.influence import Scorer
from ippo.influence.choice import COSTS
from ippo.influence.exact import token_scores_from_jvps
from ippo.influence.in_step import Filling
from ippo.influence.parameters import spread
from ippo.models.hidden import answer_states
from ippo.ppo.logprobs import LogprobPass
from ippo.rollout.episodes import Episodes


class Scoring:
    """Scores of rows along a filter's direction. Which way a buffer is scored is decided and told here.

    Args:
        module: the LightningModule that trains.
        scorer: computes the scores.
        direction: what the scores are held against.
        options: the filter's.

    Raises:
        UsageError: if scores of tokens are asked for where there are none, or the scorer cannot score the module.
    """

    def __init__(self, module: Any, scorer: Scorer, direction: HeldDirection, options: FilterOptions) -> None:
        self.module, self.scorer, self.direction, self.options = module, scorer, direction, options
        self.policy = scored_module(module)
        self._told: set[str] = set()
        scorer.check(self.policy)
        self.route = choose_route(module, scorer, direction.needs_buffer, options)
        if hasattr(module, "objective"):  # else there is one way only
            self._tell(str(self.route))

    # ---------------------------------------------------------------- the losses of rows

    def of_batches(self, batches: list[Any], number: int) -> Tensor:
        """[n] scores of micro-batches, in their order.

        Args:
            batches: whatever the losses take.
            number: of the training batch.
        """
        given = self.options.losses
        losses = given if given is not None else self.module.policy_losses
        self.scorer.observe(self.policy, _learning_rate(self.module))
        along = self.direction.at(self.policy, number)
        scores = self.scorer.score(self.policy, losses, batches, along).to(self.module.device)
        backend, _, why = self.scorer.choice.partition(": ")
        if backend in COSTS:
            slow = backend == "loop" and why != "it was asked for"
            self._tell(f"scored by {self.scorer.choice}. This takes {COSTS[backend]}", warn=slow)
        return scores

    def of_buffer(self, buffer: Any, number: int) -> tuple[Any, Tensor]:
        """[n] scores of a buffer, and the buffer with what is noted of its tokens.

        Args:
            buffer: :class:`ippo.Episodes`, or whatever the losses take, whole or with ``chunks``.
            number: of the training batch.
        """
        if not isinstance(buffer, Episodes):
            chunks = buffer.chunks(self._batch_size) if hasattr(buffer, "chunks") else [buffer]
            return buffer, self.of_batches(chunks, number)
        if self.route.uses_jvps:
            return self._by_tokens(buffer, number)
        budget = getattr(getattr(self.module, "ppo", None), "token_budget", None)
        batches: list[Any]
        batches, order = buffer.parts(self._batch_size, budget)
        if not batches and spread(self.policy):  # the other ranks cannot run without this one
            batches = [Filling(buffer.weightless())]
        return buffer, self.of_batches(batches, number)[order]

    def features(self, buffer: Any) -> Tensor | None:
        """[n, d] what says which of the module's own episodes are alike; other buffers bring their own."""
        if not isinstance(buffer, Episodes):
            return None
        budget = getattr(getattr(self.module, "ppo", None), "token_budget", None)
        return answer_states(self.policy, buffer, self._batch_size, budget)

    # ---------------------------------------------------------------- the jvps of log-probabilities

    def with_jvps(self, look: LogprobPass, number: int) -> LogprobPass:
        """Sampled responses with their log-probabilities and the jvps of these, in one pass.

        Args:
            look: the responses.
            number: of the training batch.
        """
        objective, sequences = self.module.objective, look.sequences
        self.scorer.observe(self.policy, _learning_rate(self.module))
        along = self.direction.at(self.policy, number)
        batches, order = sequences.parts(self._batch_size, objective.ppo.token_budget)
        found = self.scorer.derivatives(self.policy, objective.logprobs, batches, along)
        width = sequences.response_ids.shape[1]
        logprobs, jvps = (functional.pad(values[order], (0, width - values.shape[1])) for values in found)
        return LogprobPass(sequences, logprobs, jvps, self.scorer.forward_mode)

    def _by_tokens(self, episodes: Episodes, number: int) -> tuple[Episodes, Tensor]:
        if episodes.logprob_jvps is None:  # they are taken apart, or another filter took the log-probability pass
            episodes = replace(episodes, logprob_jvps=self.with_jvps(LogprobPass(episodes), number).logprob_jvps)
        scores = self._token_scores(episodes)
        if self.options.token_scores:
            episodes = _with_token_scores(episodes, scores, self.module.tokenizer)
        return episodes, scores.sum(1)

    def silenced(self, episodes: Episodes) -> Episodes:
        """The same episodes, scored by their tokens, in which no token that scores below zero has an advantage: it
        teaches the policy nothing."""
        return replace(episodes, advantages=episodes.advantages * (self._token_scores(episodes) >= 0))

    def _token_scores(self, episodes: Episodes) -> Tensor:
        """[n, t] what each token adds to its episode's score."""
        assert episodes.logprob_jvps is not None
        of_logprobs = partial(self.module.objective.of_logprobs, episodes=episodes)
        return token_scores_from_jvps(of_logprobs, episodes.old_logprobs, episodes.logprob_jvps)

    # ---------------------------------------------------------------- both

    @property
    def _batch_size(self) -> int:
        """Episodes of a buffer at a time."""
        return self.options.batch_size or int(getattr(getattr(self.module, "ppo", None), "micro_batch_size", 64))

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


def _with_token_scores(episodes: Episodes, scores: Tensor, tokenizer: Any) -> Episodes:
    """The same episodes with the texts of their response tokens, and what each adds to the score, as extras."""
    ids, mask = episodes.response_ids, episodes.response_mask
    vocabulary = ids[mask].unique().tolist()
    texts = dict(zip(vocabulary, tokenizer.batch_decode([[token] for token in vocabulary]), strict=True))
    rows = [row[real].tolist() for row, real in zip(scores, mask, strict=True)]
    tokens = [[texts[token] for token in row[real].tolist()] for row, real in zip(ids, mask, strict=True)]
    return episodes.with_extras(tokens=tokens, token_scores=rows)
