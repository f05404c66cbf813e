"""Tasks of the command line that the package does not know."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from small_recipe import SMALL

from ippo.errors import UsageError
from ippo.recipes.math import main
from ippo.recipes.tasks import load_task

PROGRAM = """
from ippo.data import Task
from ippo.rewards import NUMBERS

def row(a):
    return {"prompt": f"{a} plus 1?", "solution": f" {a} + 1 = {a + 1}\\n#### {a + 1}", "answer": str(a + 1)}

def sums():
    rows = [row(a) for a in range(40)]
    return Task("sums", rows[20:], rows[:10], rows[10:15], rows[15:20], NUMBERS.reward, NUMBERS.check)

def nothing():
    return None
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a module of the user's in it."""
    (tmp_path / "my_own_task.py").write_text(PROGRAM)
    (tmp_path / "asks_for_more.py").write_text("import there_is_no_such_module")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_own_task", raising=False)
    return tmp_path


def test_a_function_of_the_working_directory_makes_the_task(here: Path) -> None:
    assert load_task("my_own_task:sums").name == "sums"


def test_the_recipe_trains_on_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--task=my_own_task:sums", "--trainer.max_epochs=1", f"--trainer.default_root_dir={here / 'run'}"]
    assert main([*SMALL, *words]) == 0
    assert "Task sums: 20 training problems, 10 gold solutions." in capsys.readouterr().out
    assert (here / "run/summary.json").is_file()


def test_any_task_can_have_a_verifier_that_errs_on_purpose(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--task=my_own_task:sums", "--verifier.hole=large", "--verifier.error=0.5", "--verifier.error_icc=0.5"]
    run = ["--trainer.max_epochs=1", f"--trainer.default_root_dir={here / 'run'}"]
    assert main([*SMALL, *run, *words]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "lets 100% of 'large' answers by, and errs on 50% of its rewards, in groups (ICC 0.5), on purpose" in said
    config = yaml.safe_load((here / "run/config.yaml").read_text())
    assert config["verifier"] == {"error": 0.5, "errs_on": "both", "error_icc": 0.5, "hole": "large", "hole_rate": 1.0}
    assert main([*run, "--resume", "--verifier.hole=long"]) == 2
    assert "verifier.hole = 'long': the run began with 'large'" in capsys.readouterr().err


def test_the_embedded_task_keeps_its_own_dials(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--verifier.hole=short", f"--trainer.default_root_dir={here / 'run'}"]) == 2
    assert "verifier = 'embedded': this task has dials of its own" in capsys.readouterr().err
    assert not (here / "run").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:sums", "task = 'no_such_module:sums': there is no module 'no_such_module' here"),
        ("my_own_task:product", "my_own_task has no function 'product'"),
        ("my_own_task:nothing", r"nothing\(\) must return an ippo.data.Task, not NoneType"),
        ("sums", "or module:function"),
    ],
)
def test_what_makes_no_task_is_refused_by_name(here: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_task(name)


def test_a_path_beside_it_is_refused(here: Path) -> None:
    with pytest.raises(UsageError, match="task_path = 'x': my_own_task:sums is made by your function"):
        load_task("my_own_task:sums", "x")


def test_a_module_that_itself_misses_one_says_which(here: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such_module"):
        load_task("asks_for_more:sums")
