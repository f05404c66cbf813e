"""Which way a buffer's rows come by their scores: decided once, before the first rollout, and told with its reason.

PPO takes the log-probabilities of what was sampled anyway, and in forward mode that pass also brings their jvps along
the direction, from which scores follow by the chain rule. It earns little time, one forward: 0.08 s of an iteration of
2.2 s on the embedded task (``benchmarks/iteration.py``), which is within the noise. It is here because it gives the
score of each token (``token_scores``, ``drop_tokens``), which no other way does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from ippo.callbacks.influence.options import FilterOptions
from ippo.errors import UsageError, require
from ippo.influence import Scorer
from ippo.influence.choice import why_no_forward_mode
from ippo.influence.hook_check import MismatchError, RandomDirection
from ippo.influence.parameters import spread, trainable
from ippo.influence.precision import half_of
from ippo.rollout.sequences import Sequences

Way = Literal["one pass", "jvps apart", "apart"]


@dataclass(frozen=True)
class Route:
    """What was decided.

    Args:
        way: ``"one pass"``, scores by the chain rule from the jvps that the log-probability pass brings along; ``"jvps
            apart"``, the same jvps, in float32, from a pass of their own; ``"apart"``, the scorer scores the losses.
        why: not one pass, in one clause.
    """

    way: Way
    why: str = ""

    @property
    def uses_jvps(self) -> bool:
        """Whether scores follow from the log-probabilities' jvps, a token at a time."""
        return self.way != "apart"

    def __str__(self) -> str:
        if self.way == "one pass":
            return "scores come from the pass that takes the old log-probabilities, which they make about twice as long"
        jvps = " for the log-probabilities' derivatives, in float32" if self.uses_jvps else ""
        return f"scores take a pass of their own{jvps}, because {self.why}"


def choose_route(module: Any, scorer: Scorer, needs_buffer: bool, options: FilterOptions) -> Route:
    """For the episodes of a module.

    Args:
        module: the LightningModule that trains.
        scorer: computes the scores.
        needs_buffer: whether the direction is made of the episodes.
        options: the filter's.

    Raises:
        UsageError: if scores of tokens are asked for where there are none.
    """
    route = _route(module, scorer, needs_buffer, options)
    for option, asked in (("token_scores", options.token_scores), ("drop_tokens", options.drop_tokens)):
        remedy = (
            "it needs one_pass, ExactScorer('auto') or LookaheadScorer, and a direction apart from the buffer; "
            f"here {route}"
        )
        require(not asked or route.uses_jvps, option, True, remedy)
    return route


def _route(module: Any, scorer: Scorer, needs_buffer: bool, options: FilterOptions) -> Route:
    """The first reason against one pass.

    Differences of nearly equal numbers are noise under autocast, and a pass in forward mode rounds otherwise there than
    a plain one, so that PPO's ratios would not start at 1. Where it is off, forward mode is tried on two tokens:
    some operations have no derivative in it.
    """
    if options.losses is not None:
        return Route("apart", "the losses are not the module's own")
    if needs_buffer:
        return Route("apart", "the direction is made of the episodes")
    if not options.one_pass:
        return Route("apart", "one_pass is off")
    if not scorer.gives_jvps:
        return Route("apart", "the scorer gives no derivatives of log-probabilities")
    if spread(module.scored_module if hasattr(module, "scored_module") else module):
        return Route("apart", "each rank holds parts of the model, and forward mode takes all of it (strategy=ddp)")
    if not hasattr(module, "objective"):
        return Route("apart", f"{type(module).__name__} has no objective")
    if not module.objective.is_of_logprobs:
        return Route("apart", "the entropy bonus depends on more than the log-probabilities")
    if scorer.forward_mode and (half := half_of(module.scored_module)):
        return Route("apart", f"the model is kept in {half}, in which forward mode rounds otherwise than a plain pass")
    if scorer.forward_mode and (why := _why_no_forward_mode(module, scorer)):
        return Route("apart", why)
    if autocast := _autocast(module):
        tokens = options.token_scores or options.drop_tokens
        way: Way = "jvps apart" if tokens or not scorer.forward_mode else "apart"
        return Route(way, f"training computes in {autocast}, which rounds their derivatives away")
    return Route("one pass")


def _autocast(module: Any) -> torch.dtype | None:
    """What the trainer computes in, other than what the parameters are kept in."""
    device = module.device.type
    with module.trainer.precision_plugin.forward_context():
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _why_no_forward_mode(module: Any, scorer: Scorer) -> str:
    """By a trial; empty if it works."""
    ids = torch.arange(1, 5, device=module.device).unsqueeze(0)
    real = torch.ones(1, 2, dtype=torch.bool, device=module.device)
    rows = Sequences(ids[:, :2], real, ids[:, 2:], real)
    policy = module.scored_module
    try:
        scorer.derivatives(policy, module.objective.logprobs, [rows], RandomDirection(trainable(policy)))
    except (UsageError, torch.OutOfMemoryError) as error:
        if not isinstance(error, MismatchError):
            raise
        return why_no_forward_mode(error)
    except Exception as error:
        return why_no_forward_mode(error)
    return ""
