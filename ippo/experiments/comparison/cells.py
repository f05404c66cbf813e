"""A cell of a comparison: one ordinary run of the recipe, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ippo.errors import UsageError
from ippo.experiments.comparison.arms import Arm
from ippo.files import whole

Summary = dict[str, Any]
"""What ``summary.json`` of a run holds."""


class CellError(RuntimeError):
    """A run of a comparison that failed; what it said is in the message."""


@dataclass(frozen=True)
class Cell:
    """One arm with one seed.

    Args:
        arm: how it trains.
        seed: of the run.
        out: directory of the comparison.
        options: further words of the recipe's command line, the same for all arms.
        rate: the policy's learning rate, where it is not the arm's own.
    """

    arm: Arm
    seed: int
    out: Path
    options: tuple[str, ...] = ()
    rate: float | None = None

    @property
    def name(self) -> str:
        return f"{self.arm.name}-seed{self.seed}" + ("" if self.rate is None else f"-lr{self.rate:g}")

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self.out / self.name

    @property
    def arguments(self) -> list[str]:
        """What the recipe is told, the place of the run directory aside."""
        rate = [] if self.rate is None else ["--ppo.learning_rate", f"{self.rate:g}"]
        return ["--config", str(self.arm.path), *rate, *self.options, "--seed_everything", str(self.seed)]

    def finished(self) -> Summary | None:
        """What it came to, if it was run to its end before.

        A run that was interrupted leaves a summary, too: of what it had come to by then.

        Raises:
            UsageError: if the directory holds a run with other options.
        """
        said = self.folder / "cell.json"
        if said.exists() and not self._is(json.loads(said.read_text())):
            remedy = "it was run with other options, or the arm's file has changed: name another --out"
            raise UsageError("out", str(self.folder), remedy)
        summary = self.folder / "summary.json"
        found = json.loads(summary.read_text()) if summary.exists() else None
        return None if found is None or found.get("interrupted") else found

    def begin(self, *words: str) -> list[str]:
        """Write down what it is, and return the command that runs it, or goes on with it where it was interrupted.

        Args:
            words: further ones of the recipe's that make it no other cell, such as where its files are now.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with whole(self.folder / "cell.json") as unfinished:
            unfinished.write_text(json.dumps(self._identity, indent=2) + "\n")
        resume = ["--resume"] if list(self.folder.glob("checkpoints/*.ckpt")) else []
        place = ["--trainer.default_root_dir", str(self.folder), "--trainer.enable_progress_bar", "false"]
        return [sys.executable, "-m", "ippo.recipes.math", *self.arguments, *words, *place, *resume]

    def run(self) -> Summary:
        """Run it, or go on with it where it was interrupted. It has one thread, so that as many run as there are cores.

        Raises:
            CellError: if the run fails, or is interrupted.
        """
        command = self.begin()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CellError(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        summary = self.finished()
        if summary is None:
            raise CellError(f"{self.name} was interrupted: the same command goes on with it")
        return summary

    def _is(self, said: dict[str, Any]) -> bool:
        """Whether that was this cell; comments of an arm's file do not count."""
        arm = yaml.safe_load(self._identity["arm"])
        return yaml.safe_load(said["arm"]) == arm and said["arguments"] == self._identity["arguments"]

    @property
    def _identity(self) -> dict[str, Any]:
        words: Sequence[str] = [word for word in self.arguments if word != str(self.arm.path)]
        return {"arm": self.arm.path.read_text(), "arguments": list(words)}
