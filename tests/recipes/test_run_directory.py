from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

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


def test_runs_that_start_in_one_second_do_not_share_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "now")
    names = [RunDirectory(None, "math").path.name for _ in range(3)]
    assert names == ["math-now", "math-now-2", "math-now-3"]


def test_finds_the_newest_checkpoint_by_time(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "math")
    assert run.newest_checkpoint() is None
    run.checkpoints.mkdir()
    for age, name in enumerate(("a", "c", "b")):
        torch.save({"epoch": age}, run.checkpoints / f"{name}.ckpt")
        os.utime(run.checkpoints / f"{name}.ckpt", (1000 - age, 1000 - age))
    (run.checkpoints / "z.txt").touch()
    (run.checkpoints / "z.ckpt.unfinished").touch()
    assert run.newest_checkpoint() == run.checkpoints / "a.ckpt"


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_passes_over_a_checkpoint_that_is_torn(tmp_path: Path, share: float) -> None:
    run = RunDirectory(tmp_path, "math")
    run.checkpoints.mkdir()
    for age, name in enumerate(("new", "old")):
        path = run.checkpoints / f"{name}.ckpt"
        torch.save({"weights": torch.zeros(1000)}, path)
        os.utime(path, (1000 - age, 1000 - age))
    content = (run.checkpoints / "new.ckpt").read_bytes()
    (run.checkpoints / "new.ckpt").write_bytes(content[: int(share * len(content))])
    os.utime(run.checkpoints / "new.ckpt", (1000, 1000))
    with pytest.warns(UserWarning, match=r"new.ckpt is not a whole checkpoint \(.*\): it is passed over"):
        assert run.newest_checkpoint() == run.checkpoints / "old.ckpt"


def test_the_first_rank_names_the_directory_for_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = RunDirectory(None, "math")
    monkeypatch.setattr("time.strftime", lambda _: "a second later")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert RunDirectory(None, "math").path == first.path


@pytest.mark.parametrize("name", ["summary.json", "checkpoints/iteration-00001.ckpt"])
def test_refuses_a_directory_that_holds_a_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match="it holds another run: add --resume"):
        RunDirectory(tmp_path, "math")


def test_takes_a_directory_that_holds_a_run_if_it_is_to_be_resumed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").touch()
    torch.save({}, tmp_path / "checkpoints" / "one.ckpt")
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
