"""Scores in the pass that PPO makes anyway: it takes the old log-probabilities, and with them come their jvps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import functional

from ippo.influence import Direction, Scorer
from ippo.influence.exact import token_scores_from_jvps
from ippo.ppo.logprobs import LogprobPass
from ippo.rollout.episodes import Episodes


def with_jvps(
    module: Any, scorer: Scorer, look: LogprobPass, direction: Direction | Mapping[str, Tensor], batch_size: int
) -> LogprobPass:
    """The same responses with log-probabilities under the sampling policy, and their jvps along the direction.

    Args:
        module: with ``objective`` and ``scored_module``.
        scorer: one that gives jvps.
        look: sampled responses.
        direction: as for :meth:`ippo.influence.Scorer.score`.
        batch_size: responses at a time; the objective's ``micro_batch_tokens`` bounds them further.
    """
    batches, order = look.sequences.parts(batch_size, module.objective.ppo.micro_batch_tokens)
    found = scorer.derivatives(module.scored_module, module.objective.logprobs, batches, direction)
    width = look.sequences.response_ids.shape[1]
    logprobs, jvps = (functional.pad(values[order], (0, width - values.shape[1])) for values in found)
    return LogprobPass(look.sequences, logprobs, jvps, scorer.forward_mode)


def token_scores(module: Any, episodes: Episodes) -> Tensor:
    """[n, t] what each token adds to its episode's score, by the chain rule from the jvps that episodes carry."""
    assert episodes.logprob_jvps is not None
    of_logprobs = partial(module.objective.of_logprobs, episodes=episodes)
    return token_scores_from_jvps(of_logprobs, episodes.old_logprobs, episodes.logprob_jvps)


def with_token_scores(module: Any, episodes: Episodes, scores: Tensor) -> Episodes:
    """The same episodes with the texts of their response tokens, and what each adds to the score, as extras."""
    ids, mask = episodes.response_ids, episodes.response_mask
    vocabulary = ids[mask].unique().tolist()
    texts = dict(zip(vocabulary, module.tokenizer.batch_decode([[token] for token in vocabulary]), strict=True))
    rows = [row[real].tolist() for row, real in zip(scores, mask, strict=True)]
    tokens = [[texts[token] for token in row[real].tolist()] for row, real in zip(ids, mask, strict=True)]
    return episodes.with_extras(tokens=tokens, token_scores=rows)


def without_opposing_tokens(episodes: Episodes, scores: Tensor) -> Episodes:
    """The same episodes, in which no token that scores below zero has an advantage: it teaches the policy nothing.

    Args:
        episodes: n of them.
        scores: [n, t] of their tokens.
    """
    return replace(episodes, advantages=episodes.advantages * (scores >= 0))
