from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ippo.errors import UsageError
from ippo.recipes.run_directory import RunDirectory


def test_makes_the_directory_with_its_parents(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "a" / "b", "math")
    assert run.path.is_dir()
    assert list(run.path.iterdir()) == []


def test_names_one_after_the_recipe_and_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunDirectory(None, "math")
    assert run.path.parent == Path("runs")
    assert run.path.name.startswith("math-20")


def test_finds_the_newest_checkpoint_by_time(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "math")
    assert run.newest_checkpoint() is None
    run.checkpoints.mkdir()
    for age, name in enumerate(("a", "c", "b")):
        (run.checkpoints / f"{name}.ckpt").touch()
        os.utime(run.checkpoints / f"{name}.ckpt", (1000 - age, 1000 - age))
    (run.checkpoints / "z.txt").touch()
    assert run.newest_checkpoint() == run.checkpoints / "a.ckpt"


@pytest.mark.parametrize("name", ["summary.json", "checkpoints/iteration-00001.ckpt"])
def test_refuses_a_directory_that_holds_a_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match="it holds another run: add --resume"):
        RunDirectory(tmp_path, "math")


def test_takes_a_directory_that_holds_a_run_if_it_is_to_be_resumed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").touch()
    (tmp_path / "checkpoints" / "one.ckpt").touch()
    run = RunDirectory(tmp_path, "math", resume=True)
    assert run.newest_checkpoint() == tmp_path / "checkpoints" / "one.ckpt"


def test_refuses_to_resume_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no checkpoint to go on from"):
        RunDirectory(tmp_path, "math", resume=True)
    with pytest.raises(UsageError, match="resume = True: say which run"):
        RunDirectory(None, "math", resume=True)


def test_refuses_a_path_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="it cannot be written"):
        RunDirectory(tmp_path / "file" / "run", "math")
    with pytest.raises(UsageError, match="it cannot be written"):
        RunDirectory(tmp_path / "file", "math")


def test_writes_the_summary_whole(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "math")
    run.write_summary({"sft": {"em": 0.5}})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"sft": {"em": 0.5}}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
