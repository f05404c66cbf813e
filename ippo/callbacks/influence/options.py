"""What an influence filter can be told, and what it refuses to be told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from ippo.callbacks.influence.audit import RowId
from ippo.callbacks.influence.batch_changes import Select
from ippo.callbacks.influence.batch_selection import Reduction
from ippo.callbacks.influence.default_scorer import default_scorer
from ippo.callbacks.influence.keep_by_gold import default_keep
from ippo.errors import require
from ippo.influence import Direction, ExactScorer, KeepRule, PositiveScore, Scorer, Uniform, WeightRule


@dataclass(eq=False, repr=False)
class FilterOptions:
    """Options of :class:`ippo.callbacks.InfluenceFilterCallback`.

    Args:
        scorer: what computes the scores; its ``parameters`` say which parameters of the module count. None takes
            :class:`ippo.influence.ExactScorer` of a language model's last block, and of all parameters of any other.
        direction: the gradient to agree with. None takes the module's gold solutions for a buffer, and for a batch
            its own mean gradient.
        keep: which episodes stay. None takes, of batches with gold rows of the same loss,
            :class:`ippo.influence.LikeGold`, which drops next to nothing where nothing is wrong, and else
            :class:`ippo.influence.PositiveScore`.
        weight: weights of those that stay; None is uniform.
        min_survival: stop when a smaller share than this survives ...
        patience: ... in this many iterations in a row; of batches, in this many epochs.
        on_empty: when nothing survives, ``"skip"`` the update, ``"keep_all"`` of the episodes at weight 1, or
            ``"stop"``.
        batch_size: episodes of a buffer scored at a time; bounds memory, changes no score. None takes the module's
            ``ppo.micro_batch_size``, 64 where it has none; its ``ppo.micro_batch_tokens`` bounds it further.
        losses: ``losses(module, episodes or batch) -> [n]``, one loss a row. None takes the module's ``policy_losses``.
        one_pass: where scorer, direction and loss allow it, score in the pass that takes the old log-probabilities,
            which PPO needs anyway.
        token_scores: also note each token and its part of the score, for the episode files; needs ``one_pass``.
        drop_tokens: in the episodes that stay, silence the tokens that score below zero: their advantage becomes 0, so
            that an otherwise good episode loses its wrong step alone; needs ``one_pass``.
        unit: ``"buffer"`` or ``"batch"``.
        action: ``"drop"`` what is not kept, or leave all in place and only set ``weight``: 0 for them, and 1 on the
            mean over all, so that the mean of weight times loss is a mean over the kept.
        loss_reduction: of batches, what the training step makes of its rows' losses. Where several batches make one
            step, accumulated or of several ranks, a ``"mean"`` over few survivors is scaled down, so that every kept
            row counts the same; a ``"sum"`` is left alone.
        every_n_batches: filter one training batch in so many; the others pass as they are.
        warmup_batches: training batches that pass before the first is filtered.
        direction_every_n_batches: how long a computed direction is used, at most, before it is computed anew; it is
            sooner where a batch scores lower along it than the one that it was computed for, where the gold loss does
            not fall, or other parameters are trained.
        direction_rows: gold rows read for a direction, each time the next ones, of other batches than tokenised
            sequences in whole batches; None for all.
        dry_run: score and log, but drop, weigh and stop nothing: what to turn on first.
        audit: directory, inside the trainer's root directory, for parquet files of every decision.
        row_id: what the audit files call a row; see :data:`ippo.callbacks.influence.audit.RowId`.
        select: ``select(batch, kept)`` drops rows of a batch in place, for batches of a type of their own, and may
            return a function that puts them back.
        name: the group of the curves; two filters in one trainer need two. Another than ``"influence"`` notes its
            scores as ``score_<name>``.

    Raises:
        UsageError: if an option is out of range, or has no effect together with another.
    """

    scorer: Scorer | None = None
    direction: Direction | Mapping[str, Tensor] | None = None
    keep: KeepRule | None = None
    weight: WeightRule | None = None
    min_survival: float = 0.1
    patience: int = 2
    on_empty: Literal["skip", "keep_all", "stop"] = "skip"
    batch_size: int | None = None
    losses: Callable[..., Any] | None = None
    one_pass: bool = True
    token_scores: bool = False
    drop_tokens: bool = False
    unit: Literal["buffer", "batch"] = "buffer"
    action: Literal["drop", "weight"] = "drop"
    loss_reduction: Reduction = "mean"
    every_n_batches: int = 1
    warmup_batches: int = 0
    direction_every_n_batches: int = 1
    direction_rows: int | None = None
    dry_run: bool = False
    audit: str | Path | None = None
    row_id: RowId = None
    select: Select | None = None
    name: str = "influence"

    def __post_init__(self) -> None:
        for option, choices in (
            ("on_empty", ("skip", "keep_all", "stop")),
            ("unit", ("buffer", "batch")),
            ("action", ("drop", "weight")),
            ("loss_reduction", ("mean", "sum")),
        ):
            value = getattr(self, option)
            require(value in choices, option, value, f"use {', '.join(choices[:-1])} or {choices[-1]}")
        for option, least in (
            ("batch_size", 1),
            ("every_n_batches", 1),
            ("direction_every_n_batches", 1),
            ("direction_rows", 1),
            ("warmup_batches", 0),
        ):
            number = getattr(self, option)
            require(number is None or number >= least, option, number, f"use {least} or more")
        for option in ("token_scores", "drop_tokens"):
            wanted = getattr(self, option)
            require(self.of_buffers or not wanted, option, wanted, "rows of a batch have no tokens: use unit='buffer'")
        heard, found = self.of_buffers or self.weighs, type(self.weight).__name__
        remedy = "rows that are dropped from a batch carry no weights: use action='weight'"
        require(heard or isinstance(self.weight, Uniform | None), "weight", found, remedy)
        self.scorer_is_default, self.keep_is_default = self.scorer is None, self.keep is None
        self.scorer = self.scorer if self.scorer is not None else ExactScorer(parameters=1)
        self.keep = self.keep if self.keep is not None else PositiveScore()
        self.weight = self.weight if self.weight is not None else Uniform()

    def decide(
        self, module: nn.Module, direction: Direction | Mapping[str, Tensor]
    ) -> tuple[Scorer, KeepRule, WeightRule]:
        """What scores, keeps and weighs, once it is known what for; what was left open is filled in.

        Args:
            module: whose parameters are scored.
            direction: bound to the training.
        """
        if self.scorer_is_default:
            self.scorer = default_scorer(module)
        assert self.scorer is not None
        if self.keep_is_default:
            self.keep = default_keep(self.unit, direction, self.losses, self.scorer)
        assert self.keep is not None
        assert self.weight is not None
        return self.scorer, self.keep, self.weight

    @property
    def of_buffers(self) -> bool:
        """Whether rollout buffers are filtered, and no batches."""
        return self.unit == "buffer"

    @property
    def weighs(self) -> bool:
        """Whether all rows stay in place, and their weights alone say what counts."""
        return self.action == "weight"

    def is_due(self, batches: int) -> bool:
        """Whether a training batch is filtered, or the buffer of its iteration.

        Args:
            batches: that were seen so far, this one among them.
        """
        ready = batches - 1 - self.warmup_batches
        return ready >= 0 and ready % self.every_n_batches == 0
