"""kill -9 wherever it hurts: what was finished is whole, and the run goes on as if nothing had happened."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import pytest
import torch
from parts import MakeModule, MakeTrainer
from pyarrow import parquet
from short_runs import Run, assert_equal, results

from ippo import PromptDataModule
from ippo.callbacks import InfluenceFilterCallback
from ippo.files import StorageError, whole
from ippo.influence import ExactScorer

FATAL = 2  # the iteration that is never finished


def die(*_: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


class Fatal(L.Callback):
    """Kills the process at one point of the fatal iteration."""

    def __init__(self, point: str) -> None:
        self.point = point

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.current_epoch != FATAL:
            return
        if self.point == "rollout":
            pl_module.engine.generate = die
        elif self.point == "scoring":
            trainer.callbacks[0].scorer.score = die  # type: ignore[attr-defined]
        elif self.point == "episode file":
            parquet.write_table = lambda table, path: die(Path(path).write_bytes(b"PAR1 and no more"))
        elif self.point == "checkpoint":
            torch.save = lambda content, file: die(file.write(_bytes(content)[:5000]), file.flush())
        elif self.point == "rename":
            Path.replace = die  # type: ignore[method-assign]

    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any) -> None:
        if self.point == "update" and trainer.current_epoch == FATAL:
            die()


def _bytes(content: Any, save: Callable[..., None] = torch.save) -> bytes:
    buffer = io.BytesIO()
    save(content, buffer)
    return buffer.getvalue()


def _filter() -> L.Callback:
    return InfluenceFilterCallback.paper(scorer=ExactScorer("ghost"), one_pass=False, min_survival=0.0)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Filled by the first test that needs it."""
    return {}


@pytest.mark.parametrize("point", ["rollout", "scoring", "update", "episode file", "checkpoint", "rename"])
def test_a_killed_run_goes_on_from_the_last_iteration_it_finished(
    tmp_path: Path,
    make_module: MakeModule,
    make_trainer: MakeTrainer,
    data: PromptDataModule,
    unbroken: dict[str, Any],
    point: str,
) -> None:
    run = Run(make_module, make_trainer, data)
    if not unbroken:
        unbroken.update(results(tmp_path / "whole", run(tmp_path / "whole", _filter())))
    folder = tmp_path / "killed"
    # The process that is killed is a fork of this one: it has all the imports already.
    process = multiprocessing.get_context("fork").Process(target=run, args=(folder, _filter(), Fatal(point)))
    process.start()
    process.join(timeout=120)
    process.kill()
    assert process.exitcode == -signal.SIGKILL

    (path,) = (folder / "checkpoints").glob("*.ckpt")
    assert torch.load(path, weights_only=True)["epoch"] == FATAL - 1
    for file in (folder / "episodes").glob("*.parquet"):
        parquet.read_table(file)
    assert_equal(results(folder, run(folder, _filter(), resume=True)), unbroken)
    assert not list(folder.rglob("*.unfinished"))


class TestFullDisk:
    @pytest.fixture
    def full(self, tmp_path: Path) -> Path:
        """A file whose next version goes to a device that is always full."""
        path = tmp_path / "file"
        path.write_text("the old one")
        (tmp_path / "file.unfinished").symlink_to("/dev/full")
        return path

    def test_is_told_and_what_was_there_stays(self, full: Path) -> None:
        told = r"file could not be written \(No space left.*make room, then --resume"
        with pytest.raises(StorageError, match=told), whole(full) as unfinished:
            unfinished.write_text("the new one")
        assert full.read_text() == "the old one"
        assert os.listdir(full.parent) == ["file"]

    def test_ends_a_run_and_loses_nothing_that_was_written(
        self, tmp_path: Path, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        run, folder = Run(make_module, make_trainer, data), tmp_path / "run"

        class Fill(L.Callback):
            def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
                if trainer.current_epoch == FATAL:
                    (folder / "checkpoints" / f"epoch={FATAL}.ckpt.unfinished").symlink_to("/dev/full")

        with pytest.raises(StorageError, match=r"epoch=2.ckpt could not be written \(No space left on device\)"):
            run(folder, _filter(), Fill())
        (path,) = (folder / "checkpoints").iterdir()
        assert torch.load(path, weights_only=True)["epoch"] == FATAL - 1
        assert len([parquet.read_table(file) for file in (folder / "episodes").iterdir()]) == FATAL + 1
        assert run(folder, _filter(), resume=True).current_epoch == 4
