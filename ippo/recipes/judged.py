"""What a test has judged: how many problems, and some of the answers to show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.pytorch.utilities.seed import isolate_rng

from ippo.distributed import total_of
from ippo.files import whole
from ippo.ppo.unfinished import with_ceiling
from ippo.recipes.report import Scores, scores

SHOWN = 10
"""Problems whose first answer is kept."""

_FOUND = ("prompt", "response", "gold", "finished", "correct", "chain")
"""Columns that a reward does not ask for, beside the answer that was read."""


class Judged(L.Callback):
    """Counts the problems of a test, over all ranks, and keeps the first answers with what they would earn.

    Args:
        samples: answers to each problem.
    """

    def __init__(self, samples: int) -> None:
        self.samples, self.problems = samples, 0
        self.answers: list[dict[str, Any]] = []

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.problems, self.answers = 0, []

    def on_answers(self, trainer: L.Trainer, pl_module: L.LightningModule, table: dict[str, Sequence[Any]]) -> None:
        """Called with the columns of each batch of judged answers, in validation too."""
        if trainer.testing:
            rows = range(0, len(table["response"]), self.samples)
            self.problems += len(rows)
            self.answers += _shown(pl_module, table, rows[: SHOWN - len(self.answers)])

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.problems = int(total_of(self.problems, pl_module.device))


def _shown(module: Any, table: dict[str, Sequence[Any]], rows: Sequence[int]) -> list[dict[str, Any]]:
    """Some answers: prompt, response, whether it is right and whole, and its reward; None where none applies."""
    if not rows:
        return []
    few = {name: [values[row] for row in rows] for name, values in table.items()}
    columns = {name: values for name, values in few.items() if name not in _FOUND}
    columns["answer"] = few["gold"]  # the row's own: in the table it is the one that was read
    with isolate_rng():  # a reward may draw, and what is shown must not change what is learned
        rewards = module.rewards.to(module.device)
        earned = rewards(prompts=few["prompt"], completions=few["response"], **columns).tensor.cpu()
    numbers = with_ceiling(earned, torch.tensor(few["finished"]), module.ppo.unfinished_reward).tolist()
    names = ("prompt", "response", "correct", "finished")
    return [
        {**{name: few[name][place] for name in names}, "reward": reward if reward == reward else None}
        for place, reward in enumerate(numbers)
    ]


class Baseline:
    """What the policy was worth before PPO: kept with what the run started from, so that it is tested once.

    Args:
        path: of the file.
        options: of the run. Where others say how to judge, the policy is tested anew.
    """

    def __init__(self, path: Path, options: Namespace) -> None:
        self.path = path
        self._how = {
            "samples": options.evaluation.samples,
            "temperature": options.evaluation.temperature,
            "top_p": options.evaluation.top_p,
            "seed": options.evaluation.seed,
            "max_new_tokens": options.sampling.max_new_tokens,
            "batch_size": options.data.evaluation_batch_size,
            "limit_test_batches": options.trainer.limit_test_batches,
        }

    def read(self) -> dict[str, Any] | None:
        """``scores`` and ``answers``, if the file holds those of this way to judge."""
        found = json.loads(self.path.read_text()) if self.path.exists() else {}
        return found if found.get("how") == self._how else None

    def write(self, found: dict[str, Any]) -> None:
        """Keep ``scores`` and ``answers``."""
        with whole(self.path) as unfinished:
            unfinished.write_text(json.dumps({**found, "how": self._how}, indent=2) + "\n")


def tested(
    trainer: L.Trainer, module: L.LightningModule, data: L.LightningDataModule, judged: Judged
) -> dict[str, Any]:
    """Test the policy as it is: its ``scores``, and some ``answers``."""
    (shares,) = trainer.test(module, data, verbose=False)
    found: Scores = scores(shares, judged.samples, judged.problems)
    return {"scores": found, "answers": judged.answers}
