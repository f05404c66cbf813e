"""The examples of the filter in other trainings run as a reader would run them, and print what they promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FILES = [EXAMPLES / f"{name}.py" for name in ("digits", "grpo", "poisoned_sft")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_more_of_what_is_right_is_kept(path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, check=False, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.search(r"Kept in the second half: (\d+)% of the .*, (\d+)% of the .*\.", done.stdout)
    assert found, done.stdout[-2000:]
    right, wrong = map(int, found.groups())
    assert right > wrong + 10


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_they_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 80


def test_every_example_is_tested() -> None:
    found = {path.stem for path in EXAMPLES.glob("*.py")}
    assert found == {path.stem for path in FILES} | {"ippo_in_one_file"}
