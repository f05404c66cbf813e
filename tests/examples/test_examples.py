"""The examples of the filter in other trainings run as a reader would run them, and print what they promise."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
EXAMPLES = TESTS.parent / "examples"
FILES = [EXAMPLES / f"{name}.py" for name in ("digits", "grpo", "poisoned_sft")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_more_of_what_is_right_is_kept(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(path), run_name="__main__")  # as a script; a process of its own would only import it all again
    printed = capsys.readouterr().out
    found = re.search(r"Kept in the second half: (\d+)% of the .*, (\d+)% of the .*\.", printed)
    assert found, printed[-2000:]
    right, wrong = map(int, found.groups())
    assert right > wrong + 10


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_they_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 80


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_they_import_nothing_that_only_the_tests_have(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert names
    assert not {name.split(".")[0] for name in names} & {file.stem for file in TESTS.rglob("*.py")}


def test_chat_models_of_your_own_are_trained_and_come_out_again(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "your_own_chat_model.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "qwen2: Qwen2ForCausalLM ends at [1, 321], says" in printed
    assert "gemma3: Gemma3ForConditionalGeneration ends at [1, 321], says" in printed


class TestAnOwnTask:
    """That it learns is seen where its page runs."""

    PROGRAM = EXAMPLES / "your_own_task.py"

    def test_is_of_forty_lines_and_stands_whole_on_its_page(self) -> None:
        text = self.PROGRAM.read_text()
        assert len(text.splitlines()) <= 40
        assert f"```python\n{text}```" in (EXAMPLES.parent / "docs" / "tasks.md").read_text()


def test_every_example_is_tested() -> None:
    found = {path.stem for path in EXAMPLES.glob("*.py")}
    assert found == {path.stem for path in FILES} | {"ippo_in_one_file", "your_own_chat_model", "your_own_task"}
