"""I-PPO as a callback: score every episode, drop those that point the other way, reweight the rest, stop in time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.nn import functional

from ippo.episodes import Episodes
from ippo.errors import require
from ippo.influence import (
    Direction,
    ExactScorer,
    KeepRule,
    Losses,
    PositiveScore,
    Proportional,
    Scorer,
    ValidationDirection,
    Verdict,
    WeightRule,
    judge,
)
from ippo.influence.direction import resolve
from ippo.influence.exact import token_scores_from_slopes
from ippo.look_back import LookBack
from ippo.ranks import gather
from ippo.rewards import ChainClass
from ippo.stopwatch import stopwatch


class InfluenceFilterCallback(L.Callback):
    """Keeps the episodes whose policy gradient agrees with a reference direction (I-PPO, arXiv 2604.01597).

    Once an iteration, before the first update, each episode is scored by the dot product of its loss gradient with the
    direction. ``keep`` decides who stays, ``weight`` how much each counts, and training stops by itself when too few
    survive for too long. Keep rule, weights and the decision to stop see the buffers of all ranks together.

    Args:
        scorer: what computes the scores.
        direction: the gradient to agree with; None takes the gold solutions of the module's data.
        keep: which episodes stay.
        weight: weights of those that stay.
        min_survival: stop when a smaller share than this survives ...
        patience: ... in this many iterations in a row.
        on_empty: when nothing survives, ``"skip"`` the update, ``"keep_all"`` of the episodes at weight 1, or
            ``"stop"``.
        batch_size: episodes scored at a time; bounds memory, changes no score.
        losses: ``losses(module, episodes) -> [n]``; None takes the module's own ``policy_losses``.
        one_pass: where scorer, direction and loss allow it, score in the pass that takes the old log-probabilities,
            which PPO needs anyway.
        token_scores: also note each token's part of the score, for the episode files; needs ``one_pass``.

    Raises:
        UsageError: if an option is out of range; at the start of training, if the direction does not fit the module.
    """

    def __init__(
        self,
        scorer: Scorer | None = None,
        direction: Direction | Mapping[str, Tensor] | None = None,
        keep: KeepRule | None = None,
        weight: WeightRule | None = None,
        min_survival: float = 0.1,
        patience: int = 2,
        on_empty: Literal["skip", "keep_all", "stop"] = "skip",
        batch_size: int = 64,
        losses: Losses | None = None,
        one_pass: bool = True,
        token_scores: bool = False,
    ) -> None:
        require(0.0 <= min_survival <= 1.0, "min_survival", min_survival, "use a share between 0 (never stop) and 1")
        require(patience >= 1, "patience", patience, "use a whole number of iterations, at least 1")
        require(on_empty in ("skip", "keep_all", "stop"), "on_empty", on_empty, "use skip, keep_all or stop")
        require(batch_size >= 1, "batch_size", batch_size, "use at least 1")
        self.scorer = scorer if scorer is not None else ExactScorer()
        self.direction, self.losses, self.one_pass, self.token_scores = direction, losses, one_pass, token_scores
        self.keep = keep if keep is not None else PositiveScore()
        self.weight = weight if weight is not None else Proportional()
        self.min_survival, self.patience, self.on_empty, self.batch_size = min_survival, patience, on_empty, batch_size
        self.iterations_below = 0
        self.stopping_reason_message: str | None = None
        self._along: Direction | Mapping[str, Tensor] = {}  # the direction of this fit, known when training starts
        self._seconds = 0.0  # of this iteration's scoring that are already spent

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One trial of the direction, so that a wrong one is told before the first rollout."""
        module: Any = pl_module
        self.stopping_reason_message = None
        direction = self.direction if self.direction is not None else ValidationDirection()
        self._along = direction.bind(module) if isinstance(direction, Direction) else direction
        if self.token_scores:
            remedy = "it needs one_pass, ExactScorer in forward mode, float32 and a direction apart from the buffer"
            require(self._in_one_pass(module), "token_scores", True, remedy)
        if not self._needs_buffer:
            with isolate_rng():  # a direction may sample; a resumed run tries it once more and must draw the same
                resolve(self._along, module.scored_module)

    def on_look_back(self, trainer: L.Trainer, pl_module: L.LightningModule, look: LookBack) -> LookBack:
        """Take the old log-probabilities in forward mode: with them come their slopes, and from those the scores."""
        module: Any = pl_module
        if look.logprobs is not None or not self._in_one_pass(module):
            return look
        with stopwatch(pl_module, "score") as lap:
            batches = look.sequences.chunks(self.batch_size)
            scorer: Any = self.scorer
            found = scorer.derivatives(module.scored_module, module.objective.logprobs, batches, self._along)
        self._seconds = lap.seconds
        width = look.sequences.response_ids.shape[1]
        logprobs, slopes = (functional.pad(values, (0, width - values.shape[1])) for values in found)
        return LookBack(look.sequences, logprobs, slopes)

    def on_rollout_end(self, trainer: L.Trainer, pl_module: L.LightningModule, episodes: Episodes) -> Episodes:
        """Score, keep, weigh; returns the survivors."""
        with stopwatch(pl_module, "score", already=self._seconds):
            episodes, scores = self._score(pl_module, episodes)
            scores, own = gather(scores)
            rewards, groups = gather(episodes.rewards)[0], gather(episodes.groups)[0]
            verdict = judge(scores, rewards, groups, self.keep, self.weight)
        self._seconds = 0.0
        self._stop_in_time(trainer, verdict.survival)
        self._log(pl_module, episodes, verdict, own)
        episodes = dataclasses.replace(episodes.annotate(score=verdict.scores[own].tolist()), slopes=None)
        if verdict.survival == 0.0 and self.on_empty == "keep_all":
            return episodes
        mine = verdict.part(own)
        return episodes.reweight(mine.weights).select(mine.kept, mine.reasons)

    def _score(self, module: Any, episodes: Episodes) -> tuple[Episodes, Tensor]:
        if episodes.slopes is not None and self._in_one_pass(module):
            of_logprobs = partial(module.objective.of_logprobs, episodes=episodes)
            tokens = token_scores_from_slopes(of_logprobs, episodes.old_logprobs, episodes.slopes)
            if self.token_scores:
                rows = [row[mask].tolist() for row, mask in zip(tokens, episodes.response_mask, strict=True)]
                episodes = episodes.annotate(token_scores=rows)
            return episodes, tokens.sum(1)
        losses = self.losses if self.losses is not None else module.policy_losses
        self.scorer.observe(module.scored_module, _learning_rate(module))
        scores = self.scorer.score(module.scored_module, losses, episodes.chunks(self.batch_size), self._along)
        return episodes, scores.to(episodes.rewards)

    def _in_one_pass(self, module: Any) -> bool:
        """Whether the loss depends on the parameters through the old log-probabilities alone, the direction not at all
        on the loss, and the scorer works in forward mode."""
        if not self.one_pass or not self.scorer.forward_mode or self.losses is not None or self._needs_buffer:
            return False
        # In half precision the two passes round differently, and PPO's ratios would not start at 1.
        precise = next(module.scored_module.parameters()).dtype == torch.float32
        return precise and hasattr(module, "objective") and module.objective.is_of_logprobs

    @property
    def _needs_buffer(self) -> bool:
        return isinstance(self._along, Direction) and self._along.needs_buffer

    def _stop_in_time(self, trainer: L.Trainer, survival: float) -> None:
        """Count the iterations in which too few survived; enough of them in a row end the training."""
        self.iterations_below = self.iterations_below + 1 if survival < self.min_survival else 0
        if self.iterations_below >= self.patience:
            self._stop(
                trainer, f"below {self.min_survival:.0%} of the episodes survived, {self.patience} iterations in a row"
            )
        elif survival == 0.0 and self.on_empty == "stop":
            self._stop(trainer, "no episode survived")

    def _stop(self, trainer: L.Trainer, reason: str) -> None:
        self.stopping_reason_message = reason
        trainer.should_stop = True

    def _log(self, pl_module: L.LightningModule, episodes: Episodes, verdict: Verdict, own: slice) -> None:
        finite = verdict.scores[torch.isfinite(verdict.scores)]
        curves = {
            "influence/score_mean": float(finite.mean()) if len(finite) else 0.0,
            "influence/effective_sample_size": verdict.effective_sample_size,
        }
        pl_module.log("influence/kept_fraction", verdict.survival, prog_bar=True)
        pl_module.log_dict(curves)
        pl_module.log_dict(kept_by_class(episodes.notes.get("chain", ()), verdict.kept[own].tolist()), sync_dist=True)
        if isinstance(pl_module.logger, TensorBoardLogger) and len(finite):
            pl_module.logger.experiment.add_histogram("influence/scores", finite, pl_module.current_epoch)

    def state_dict(self) -> dict[str, Any]:
        return {"iterations_below": self.iterations_below, "scorer": self.scorer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.iterations_below = state_dict["iterations_below"]
        self.scorer.load_state_dict(state_dict["scorer"])


def _learning_rate(module: L.LightningModule) -> float:
    """The rate of the step that follows: that of the first parameter group; 1 where there is no single optimizer."""
    optimizer = module.optimizers()
    return float(optimizer.param_groups[0]["lr"]) if isinstance(optimizer, torch.optim.Optimizer) else 1.0


def kept_by_class(chains: Sequence[ChainClass], kept: Sequence[bool]) -> dict[str, float]:
    """Share that survives among right answers by faithful chains, right answers by unfaithful ones, and wrong answers.

    Example:
        >>> kept_by_class(["faithful", "shortcut", "wrong", "wrong"], [True, False, True, False])
        {'influence/kept_correct': 1.0, 'influence/kept_false_positive': 0.0, 'influence/kept_wrong': 0.5}
    """
    kinds = {"faithful": "kept_correct", "wrong": "kept_wrong"}
    members: dict[str, list[bool]] = {}
    for chain, stays in zip(chains, kept, strict=bool(chains)):
        members.setdefault(kinds.get(chain, "kept_false_positive"), []).append(stays)
    return {f"influence/{name}": sum(stays) / len(stays) for name, stays in sorted(members.items())}
