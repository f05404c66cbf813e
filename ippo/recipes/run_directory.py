"""The directory of a run: made before work starts, never overwritten, found again by ``--resume``, and gone where the
run could not start."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ippo.callbacks.checkpoint import is_whole
from ippo.errors import UsageError, require
from ippo.files import whole
from ippo.recipes.start import start_of

_OF_FIRST_RANK = "IPPO_RUN_DIRECTORY"  # Lightning starts the other ranks from the first, with its environment


class RunDirectory:
    """Where a run leaves its files. As a context it removes what a run wrote that failed before :meth:`begin`.

    Args:
        root: the directory; a new one under ``runs/`` when None.
        recipe: name of the recipe, part of a new directory's name.
        resume: whether to go on with the run that is already there.

    Raises:
        UsageError: if it cannot be written, holds another run that is not to be resumed, or holds none that could be.
    """

    def __init__(self, root: str | Path | None, recipe: str, resume: bool = False) -> None:
        require(root is not None or not resume, "resume", True, "say which run: --trainer.default_root_dir DIRECTORY")
        first = os.environ.get(_OF_FIRST_RANK) if "LOCAL_RANK" in os.environ else None  # all ranks share one directory
        self.path = Path(root or first or "runs")
        self._made = [one for one in (self.path, *self.path.parents) if not one.exists()]
        self._begun = False
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not root and not first:
                self.path = _fresh(self.path / f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}")
                self._made.insert(0, self.path)
            (self.path / ".writable").touch()
            (self.path / ".writable").unlink()
            self._there = set(self.path.iterdir())
        except OSError as error:
            raise UsageError(
                "trainer.default_root_dir", str(self.path), f"it cannot be written ({error.strerror})"
            ) from error
        os.environ[_OF_FIRST_RANK] = str(self.path)
        taken = any(self.checkpoints.glob("*.ckpt")) or self.summary.exists()
        another = "it holds another run: add --resume to go on with it, or name another directory"
        require(resume or not taken, "trainer.default_root_dir", str(self.path), another)
        require(
            not resume or self.newest_checkpoint() is not None,
            "resume",
            str(self.path),
            "there is no checkpoint to go on from",
        )

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or self._begun or rank_zero_only.rank != 0:  # type: ignore[attr-defined]
            return
        for path in set(self.path.iterdir()) - self._there:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in self._made:
            with suppress(OSError):  # another run has begun beside it
                path.rmdir()

    def begin(self, config: str) -> None:
        """Everything was found sound: write the options down, once. From here on the directory stays."""
        if self._begun:
            return
        self._begun = True
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            with whole(self.config) as unfinished:
                unfinished.write_text(config)

    @property
    def config(self) -> Path:
        """All options of the run, enough to repeat it."""
        return self.path / "config.yaml"

    @property
    def summary(self) -> Path:
        """What the run came to."""
        return self.path / "summary.json"

    @property
    def checkpoints(self) -> Path:
        """One file an iteration, the newest kept."""
        return self.path / "checkpoints"

    @property
    def episodes(self) -> Path:
        """Every episode with its score and its fate, a file an iteration and rank."""
        return self.path / "episodes"

    @property
    def baseline(self) -> Path:
        """What the policy was worth that it started from."""
        return start_of(self.path) / "scores.json"

    @property
    def policy(self) -> Path:
        """The trained policy, a Hugging Face directory."""
        return self.path / "policy"

    def newest_checkpoint(self) -> Path | None:
        """The checkpoint to resume from, the newest that is whole, or None."""
        found = sorted(self.checkpoints.glob("*.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True)
        return next(filter(is_whole, found), None)

    def write_answers(self, before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], of: str) -> None:
        """Write ``answers.json``: some answers to the same problems of a split, before and after."""
        with whole(self.path / "answers.json") as unfinished:
            content = {"of": of, "before": list(before), "after": list(after)}
            unfinished.write_text(json.dumps(content, indent=2) + "\n")

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write ``summary.json``, whole or not at all."""
        with whole(self.summary) as unfinished:
            unfinished.write_text(json.dumps(summary, indent=2) + "\n")


def _fresh(path: Path) -> Path:
    """A directory that was not there before, also where another run starts in the same second."""
    turn, numbered = 1, path
    while True:
        try:
            numbered.mkdir()
        except FileExistsError:
            turn += 1
            numbered = path.with_name(f"{path.name}-{turn}")
        else:
            return numbered
