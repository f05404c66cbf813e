"""The command line helps: what is wrong is one line that names argument, value and remedy."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from small_recipe import SMALL

from ippo import cli
from ippo.recipes import command, math
from ippo.recipes.help import _SHOWN
from ippo.recipes.math import RECIPE
from ippo.recipes.parser import parser_of
from ippo.rollout.engines.hf import HFGenerate

FILES = {
    "syntax.yaml": "ppo:\n  lam: [1, 2\nfilter: {",
    "value.yaml": "# mine\nppo:\n  lam: often\n",
    "option.yaml": "ppo:\n  gamma: 1.0\n  lamda: 0.9\n",
    "deep.yaml": "filter:\n  class_path: ippo.callbacks.InfluenceFilterCallback\n  init_args:\n    patiense: 3\n",
    "list.yaml": "- task\n",
    "rows.csv": "question,solution,answer\n" + "".join(f"{n} + 1?,{n} + 1 = {n + 1},{n + 1}\n" for n in range(99)),
    "my_rewards.py": "def short(prompts, completions, **_):\n    return [float(len(one) < 9) for one in completions]\n",
}

WRONG = [
    ("--lam 0.9", "lam = '0.9': there is no such option; did you mean --ppo.lam?"),
    ("--ppo.lamda=0.9", "ppo.lamda = '0.9': there is no such option; did you mean --ppo.lam?"),
    ("--max-epochs 3", "max-epochs = '3': there is no such option; did you mean --trainer.max_epochs?"),
    ("--learning_rate=1", "did you mean --ppo.learning_rate or --sft.learning_rate?"),
    ("-task math", "task = 'math': there is no such option; did you mean --task?"),
    ("math", "command line = 'math': a value without an option before it: write --NAME VALUE"),
    ("--task", "task = None: it needs a value: --task VALUE"),
    ("--resume=perhaps", "resume = 'perhaps': it takes no value: say --resume or --no_resume"),
    ("--ppo=3", "ppo = '3': a group of options has no value of its own: say --ppo.NAME VALUE"),
    ("--ppo.lam=often", "ppo.lam = 'often': use a number"),
    ("--ppo.inner_epochs=1.5", "ppo.inner_epochs = '1.5': use a whole number"),
    ("--ppo.value_clip=wide", "ppo.value_clip = 'wide': use a number or null"),
    ("--ppo.whiten=si", "ppo.whiten = 'si': use true or false"),
    ("--ppo.lam=2", "ppo.lam = 2.0: use a number between 0 and 1"),
    ("--ppo.kl_estimator=k4", "ppo.kl_estimator = 'k4': use k1, k2 or k3"),
    ("--layout=sharde", "layout = 'sharde': use separate, shared or lora; did you mean 'shared'?"),
    ("--filter=last_blok", "did you mean 'last_block'?"),
    ("--filter.keep=TopFractoin", "filter.keep = 'TopFractoin': use "),
    ("--filter.patiense=3", "InfluenceFilterCallback has no such option; did you mean 'patience'?"),
    ("--filter.patience=0", "filter.patience = '0': use a whole number of at least 1"),
    ("--filter.min_survival=lots", "filter.min_survival = 'lots': use a number"),
    ("--trainer.callbacks+=EarlyStoping", "did you mean 'EarlyStopping'?"),
    ("--trainer.callbacks+=EarlyStopping", "it needs monitor: --trainer.callbacks.monitor VALUE"),
    ("--trainer.max_epochs=few", "trainer.max_epochs = 'few': use a whole number or null"),
    ("--trainer.precision=half", "trainer.precision = 'half': use "),
    ("--trainer.accelerator=cpp", "trainer = 'accelerator cpp': "),
    ("--config=none.yaml", "config = 'none.yaml': there is no such file"),
    ("--config=syntax.yaml", "config = 'syntax.yaml': it is no YAML: line 3"),
    ("--config=value.yaml", "ppo.lam = 'often': use a number (value.yaml, line 3)"),
    (
        "--config=option.yaml",
        "ppo.lamda = '0.9': there is no such option; did you mean --ppo.lam? (option.yaml, line 3)",
    ),
    (
        "--config=deep.yaml",
        "filter.patiense = '3': InfluenceFilterCallback has no such option; did you mean 'patience'?",
    ),
    ("--config=list.yaml", "config = 'list.yaml': it must hold options"),
    ("--task=gsm8", "task = 'gsm8': use embedded"),
    ("--task=my_tasks:sums", "task = 'my_tasks:sums': there is no module 'my_tasks' here"),
    ("--reward=my_rewards", "reward = 'my_rewards': say module:function"),
    ("--reward=my_rewards:shrot", "my_rewards has no function 'shrot'; did you mean 'short'?"),
    ("--preset=gsm8k_rho1", "did you mean 'gsm8k_rho1b'?"),
    ("--task=file", "task_path = None: say which file: --task_path problems.csv"),
    ("--task=file --task_path=rows.csv", "columns.prompt = 'prompt': there is no such column in rows.csv, which has"),
    ("--trainer.limit_test_batches=0", "trainer.limit_test_batches = 0: the report is of the test problems"),
    ("evaluate", "checkpoint = None: say which model to judge: --checkpoint RUN_DIRECTORY, or --policy"),
    ("evaluate --policy=tiny", "checkpoint = None: say which model to judge"),
    ("export --checkpoint=none", "output = None: say --output DIRECTORY"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    for name, content in FILES.items():
        (folder / name).write_text(content)
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return folder


@pytest.mark.parametrize(("words", "told"), WRONG, ids=[words for words, _ in WRONG])
def test_what_is_wrong_is_told_in_one_line_and_nothing_is_left(
    words: str, told: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HFGenerate, "generate", lambda *_, **__: 1 / 0)  # before the first rollout
    small = [] if words.startswith(("evaluate", "export")) else SMALL
    assert math.main([*small, *words.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert told in line
    assert not [name for name in ("<class", "typing.", "Namespace(", "NestedArg", "Traceback") if name in line]
    assert {path.name for path in here.iterdir()} - set(FILES) <= {"__pycache__"}


class TestHelp:
    @pytest.mark.parametrize("word", _SHOWN)
    def test_the_short_one_fits_on_a_screen_and_names_what_there_is(
        self, word: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert math.main([word, "--help"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) <= 60
        assert max(map(len, lines)) <= 80
        there = {action.dest for action in parser_of(RECIPE, word, [])._actions}
        assert {name for texts in _SHOWN[word].values() for name in texts} <= there
        assert f"  python -m ippo.recipes.math{'' if word == 'train' else ' ' + word}" in "\n".join(lines)

    def test_the_long_one_has_a_text_for_each_option(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert math.main(["--help", "all"]) == 0
        said = capsys.readouterr().out
        parser = parser_of(RECIPE, "train", [])
        assert all(name in said for action in parser._actions for name in action.option_strings)
        bare = [action.dest for action in parser._actions if action.help in (None, "", argparse.SUPPRESS)]
        assert bare == []
        assert not [mark for mark in (":func:", ":class:", "``") if mark in said]


class TestProgram:
    def test_its_help_needs_none_of_the_libraries(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main([]) == 0
        said = capsys.readouterr().out
        assert all(f"  {word} " in said for word in ("train", "evaluate", "export", "compare", "diagnose", "doctor"))
        assert len(said.splitlines()) < 60

    def test_a_word_that_is_none_is_told_with_its_neighbour(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["trian"]) == 2
        assert "did you mean 'train'?" in capsys.readouterr().err

    @pytest.mark.parametrize("word", ["train", "evaluate", "export", "compare", "diagnose", "doctor"])
    def test_each_word_has_its_help(self, word: str, capsys: pytest.CaptureFixture[str]) -> None:
        with suppress(SystemExit):  # argparse's own way out
            assert cli.main([word, "--help"]) == 0
        assert f"ippo {word}" in capsys.readouterr().out

    def test_it_trains_on_a_file_with_a_reward_of_the_user_s(
        self, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        sizes = ["--splits.gold_size=8", "--splits.validation_size=4", "--splits.test_size=4"]
        small = [word for word in SMALL if not word.startswith("--embedded")]
        words = ["--task=file", "--task_path=rows.csv", "--columns.prompt=question", "--reward=my_rewards:short"]
        run = tmp_path / "run"
        place = [f"--trainer.default_root_dir={run}", "--trainer.max_epochs=1", "--trainer.enable_checkpointing=false"]
        assert cli.main(["train", *small, *words, *sizes, *place]) == 0
        assert "Its reward is my_rewards:short" in " ".join(capsys.readouterr().out.split())
        assert json.loads((run / "summary.json").read_text())["trained"]["n"] == 4


@pytest.mark.parametrize("stopped", ["by Python", "by Lightning"])
def test_ctrl_c_outside_of_the_iterations_is_one_line(
    stopped: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            if stopped == "by Python":
                raise
            sys.exit(1)

    monkeypatch.setitem(command._DO, "train", interrupted)
    assert math.main([]) == 130
    assert capsys.readouterr().err == "interrupted\n"
