"""What a filter tells the loggers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from ippo.distributed import gather_texts
from ippo.influence import Selection
from ippo.rollout.episodes import Episodes


class FilterCurves:
    """The curves of one filter, all under ``<name>/``.

    Of rollouts every selection is logged. Batches are many and short, and a logged number costs as much as a small
    network's layer: of them each point is a mean since the last one, at the steps that the trainer logs.

    Args:
        name: first part of the tags.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._sums: dict[str, float] = defaultdict(float)
        self._selections = 0
        self._gold_losses: list[float] = []  # of this epoch

    def rollout(
        self, module: L.LightningModule, selection: Selection, loss: float | None, episodes: Any, number: int
    ) -> None:
        """Log a selection on a rollout buffer.

        Args:
            module: the module that trains.
            selection: on the episodes of all ranks.
            loss: whose gradient the direction is, e.g. that of the gold solutions.
            episodes: what was judged on this rank; :class:`ippo.Episodes` also tell their classes.
            number: of the iteration.
        """
        self._note(loss)
        shares = _of_selection(selection, loss)
        module.log(f"{self.name}/kept_fraction", shares.pop("kept_fraction"), prog_bar=True)
        module.log_dict({f"{self.name}/{curve}": share for curve, share in shares.items()})
        if isinstance(episodes, Episodes):
            chains = gather_texts(episodes.extras.get("chain", ()), selection.kept.device)
            classes = kept_by_class(chains, selection.kept.tolist())
            module.log_dict({f"{self.name}/{curve}": share for curve, share in classes.items()})
        if number % max(1, module.trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            self._histogram(module, selection, number)

    def batch(self, module: L.LightningModule, selection: Selection, loss: float | None, number: int) -> None:
        """Take in a selection on a batch."""
        self._note(loss)
        for curve, share in _of_selection(selection, loss).items():
            self._sums[curve] += share
        self._selections += 1
        if logs_now(module.trainer):
            self._histogram(module, selection, number)

    def step(self, module: L.LightningModule, seconds: float, of_them_scoring: float) -> None:
        """Take in what a step took, filtered or not, and log the means if it is time."""
        self._sums["step"] += seconds
        self._sums["score"] += of_them_scoring
        if not self._selections or not logs_now(module.trainer):
            return
        step, score = self._sums.pop("step"), self._sums.pop("score")
        module.log("time/score", score / self._selections)
        module.log(f"{self.name}/cost", score / step)
        means = {curve: total / self._selections for curve, total in self._sums.items()}
        module.log(f"{self.name}/kept_fraction", means.pop("kept_fraction"), prog_bar=True)
        module.log_dict({f"{self.name}/{curve}": mean for curve, mean in means.items()})
        self._sums.clear()
        self._selections = 0

    def end_epoch(self, module: L.LightningModule, latest: Callable[[], float | None]) -> None:
        """Tell callbacks that monitor it the gold loss: the epoch's mean, whichever steps were logged.

        Args:
            module: the module that trains.
            latest: the loss where no row was scored in this epoch.
        """
        losses, self._gold_losses = self._gold_losses, []
        loss = sum(losses) / len(losses) if losses else latest()
        if loss is not None:
            module.log(f"{self.name}/gold_loss", loss, logger=False, batch_size=1, sync_dist=True)

    def _note(self, loss: float | None) -> None:
        self._gold_losses += [] if loss is None else [loss]

    def _histogram(self, module: L.LightningModule, selection: Selection, number: int) -> None:
        finite = selection.scores[torch.isfinite(selection.scores)]
        for logger in module.loggers:
            if isinstance(logger, TensorBoardLogger) and len(finite):
                logger.experiment.add_histogram(f"{self.name}/scores", finite, number)


def kept_by_class(chains: Sequence[str], kept: Sequence[bool]) -> dict[str, float]:
    """Share that survives among right answers by faithful chains, right answers by unfaithful ones, and wrong answers;
    chains that could not be checked, and answers that passed through a verifier's hole, are groups of their own, where
    there are any.

    Example:
        >>> kept_by_class(["faithful", "shortcut", "wrong", "wrong"], [True, False, True, False])
        {'kept_correct': 1.0, 'kept_false_positive': 0.0, 'kept_wrong': 0.5}
    """
    kinds = {"faithful": "kept_correct"} | {kind: f"kept_{kind}" for kind in ("wrong", "unverifiable", "hacked")}
    members: dict[str, list[bool]] = {}
    for chain, stays in zip(chains, kept, strict=bool(chains)):
        members.setdefault(kinds.get(chain, "kept_false_positive"), []).append(stays)
    return {name: sum(stays) / len(stays) for name, stays in sorted(members.items())}


def _of_selection(selection: Selection, loss: float | None) -> dict[str, float]:
    finite = selection.scores[torch.isfinite(selection.scores)]
    return {
        **({} if loss is None else {"gold_loss": loss}),
        "kept_fraction": selection.survival,
        "score_mean": float(finite.mean()) if len(finite) else 0.0,
        "effective_sample_size": selection.effective_sample_size,
    }


def logs_now(trainer: L.Trainer) -> bool:
    """Whether Lightning writes this step's metrics: what its own callbacks ask, though it has no public name."""
    return trainer._logger_connector.should_update_logs
