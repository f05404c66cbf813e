"""What a filter tells the loggers of each verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from ippo.episodes import Episodes
from ippo.influence import Verdict
from ippo.rewards import ChainClass


def log_verdict(group: str, module: L.LightningModule, verdict: Verdict, own: slice, batch: Any, number: int) -> None:
    """Log a verdict's curves under ``group/``, and a histogram of its scores to TensorBoard.

    Args:
        group: first part of the tags.
        module: the module that trains.
        verdict: on the rows of all ranks.
        own: where this rank's rows are among them.
        batch: what was judged; :class:`ippo.Episodes` also tell their classes.
        number: of the batch.
    """
    finite = verdict.scores[torch.isfinite(verdict.scores)]
    module.log(f"{group}/kept_fraction", verdict.survival, prog_bar=True)
    curves = {
        f"{group}/score_mean": float(finite.mean()) if len(finite) else 0.0,
        f"{group}/effective_sample_size": verdict.effective_sample_size,
    }
    module.log_dict(curves)
    if isinstance(batch, Episodes):
        shares = kept_by_class(batch.notes.get("chain", ()), verdict.kept[own].tolist())
        module.log_dict({f"{group}/{name}": share for name, share in shares.items()}, sync_dist=True)
    if len(finite) and number % max(1, module.trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
        for logger in module.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_histogram(f"{group}/scores", finite, number)


def kept_by_class(chains: Sequence[ChainClass], kept: Sequence[bool]) -> dict[str, float]:
    """Share that survives among right answers by faithful chains, right answers by unfaithful ones, and wrong answers.

    Example:
        >>> kept_by_class(["faithful", "shortcut", "wrong", "wrong"], [True, False, True, False])
        {'kept_correct': 1.0, 'kept_false_positive': 0.0, 'kept_wrong': 0.5}
    """
    kinds = {"faithful": "kept_correct", "wrong": "kept_wrong"}
    members: dict[str, list[bool]] = {}
    for chain, stays in zip(chains, kept, strict=bool(chains)):
        members.setdefault(kinds.get(chain, "kept_false_positive"), []).append(stays)
    return {name: sum(stays) / len(stays) for name, stays in sorted(members.items())}
