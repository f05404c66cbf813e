"""What a run says of itself is so: its options, its figures, why it ended; short runs, as a user makes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_recipe import SMALL, numbers, summary
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ippo.recipes.math import main

STOPPING = [
    "--trainer.callbacks+=EarlyStopping",
    "--trainer.callbacks.monitor=ppo/kl",
    "--trainer.callbacks.patience=9",
]
BEGUN = [*SMALL, "--sft.steps=40", "--filter=none", "--ppo.value_clip=null", *STOPPING]


def run(directory: Path, *arguments: str) -> int:
    return main([*BEGUN, f"--trainer.default_root_dir={directory}", *arguments])


def go_on(directory: Path, *arguments: str) -> int:
    return main([f"--trainer.default_root_dir={directory}", "--resume", *arguments])


def config(directory: Path) -> dict[str, Any]:
    return yaml.safe_load((directory / "config.yaml").read_text())


def rates(directory: Path) -> list[float]:
    path = max((directory / "checkpoints").iterdir(), key=lambda one: one.stat().st_mtime)
    (optimizer,) = torch.load(path, weights_only=True)["optimizer_states"]
    return [group["lr"] for group in optimizer["param_groups"]]


def points(directory: Path, tag: str) -> int:
    return len(EventAccumulator(str(directory / "ppo")).Reload().Scalars(tag))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one iteration; read only."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    assert run(directory, "--trainer.max_epochs=1") == 0
    return directory


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


class TestConfiguration:
    def test_repeats_the_run_in_a_directory_of_its_own(
        self, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert go_on(copied, "--trainer.max_epochs=2") == 0
        assert config(copied)["ppo"]["value_clip"] is None  # which the defaults are not
        monkeypatch.chdir(tmp_path)
        assert main([f"--config={copied / 'config.yaml'}"]) == 0
        (again,) = (tmp_path / "runs").iterdir()
        assert numbers(again) == numbers(copied)
        assert config(again) == config(copied)

    def test_has_each_callback_once_however_often_the_command_line_is_given(self, copied: Path) -> None:
        assert run(copied, "--resume", "--trainer.max_epochs=2") == 0
        (callback,) = config(copied)["trainer"]["callbacks"]
        assert callback["init_args"]["patience"] == 9

    def test_stays_as_it_is_where_going_on_is_refused_or_fails(
        self, copied: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = (copied / "config.yaml").read_text()
        for words in (["--sft.steps=7"], [*STOPPING[:2], "--trainer.callbacks.patience=8"], ["--policy=/no/where"]):
            assert go_on(copied, "--trainer.max_epochs=2", *words) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("error: ")
        assert (copied / "config.yaml").read_text() == before
        assert go_on(copied, "--trainer.max_epochs=2") == 0


class TestAnOptionThatIsChangedOnTheWay:
    def test_holds_from_there_on(self, copied: Path) -> None:
        words = ("--ppo.learning_rate=0.25", "--ppo.schedule=linear", "--ppo.clip_low=0.125")
        assert go_on(copied, "--trainer.max_epochs=3", *words) == 0
        policy, value = rates(copied)
        assert 0.0 < policy < 0.25  # after it the rate falls
        assert value < config(copied)["ppo"]["value_learning_rate"]
        assert config(copied)["ppo"]["learning_rate"] == 0.25
        assert config(copied)["ppo"]["clip_low"] == 0.125

    @pytest.mark.parametrize(
        ("words", "named", "remedy"),
        [
            (["--sft.steps=7"], "sft.steps = 7", "began with 40"),
            (["--seed_everything=1"], "seed_everything = 1", "began with 0"),
            (["--embedded.test_size=5"], "embedded.test_size = 5", "began with 4"),
            (["--task=gsm8k"], "task = 'gsm8k'", "began with 'embedded'"),
            (["--layout=lora"], "layout = 'lora'", "began with 'separate'"),
            (
                ["--ppo.advantage=rloo", "--ppo.value_coef=0", "--ppo.kl_coef=0"],
                "ppo.advantage = 'rloo'",
                "one has a critic",
            ),
            (["--ppo.ptx_coef=1", "--ppo.ptx_share=0.5"], "ppo.ptx_share = 0.5", "began with 1.0"),
            (["--trainer.callbacks=LearningRateMonitor"], "trainer.callbacks", "the run's own come first"),
        ],
    )
    def test_or_is_refused(
        self, finished: Path, words: list[str], named: str, remedy: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert go_on(finished, "--trainer.max_epochs=2", *words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {named}")
        assert remedy in line


class TestWhyARunEnded:
    @pytest.mark.parametrize(
        ("words", "why"),
        [
            (["--trainer.max_steps=1"], "max_steps"),
            (["--trainer.max_time=00:00:00:00"], "max_time"),
            (["--trainer.limit_train_batches=0"], "limit_train_batches"),
        ],
    )
    def test_is_called_what_it_is(self, words: list[str], why: str, tmp_path: Path) -> None:
        assert run(tmp_path, "--trainer.max_epochs=9", "--trainer.limit_val_batches=0", *words) == 0
        assert summary(tmp_path)["stopped_by"] == why
        assert len(summary(tmp_path)["iterations"]) < 9

    @pytest.mark.parametrize("words", [[], ["--trainer.max_epochs=1"], ["--evaluation.samples=3"]])
    def test_a_finished_run_says_so_and_tests_nothing_again(
        self, words: list[str], copied: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
        assert go_on(copied, *words) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "This run is finished: 1 of trainer.max_epochs = 1 iterations are done: a larger number goes on." in said
        assert "warm start" in said
        assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before

    def test_one_that_its_filter_ended_says_so_until_the_filter_is_changed(
        self, copied: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        found = {**summary(copied), "stopped_by": "too few survived"}
        (copied / "summary.json").write_text(json.dumps(found))
        assert go_on(copied, "--trainer.max_epochs=2", "--ppo.lam=1.0") == 0  # one is an option changed
        assert len(summary(copied)["iterations"]) == 2


class TestFigures:
    def test_count_what_was_judged(self, tmp_path: Path) -> None:
        words = ("--trainer.limit_test_batches=1", "--data.evaluation_batch_size=3", "--trainer.max_epochs=1")
        assert run(tmp_path, *words) == 0
        assert summary(tmp_path)["trained"]["n"] == summary(tmp_path)["sft"]["n"] == 3

    def test_of_the_start_are_taken_once(self, copied: Path) -> None:
        assert points(copied, "test/em") == 2
        assert go_on(copied, "--trainer.max_epochs=2") == 0
        assert points(copied, "test/em") == 3
        assert go_on(copied, "--trainer.max_epochs=3", "--evaluation.samples=3") == 0  # another way to judge
        assert points(copied, "test/em") == 5
        assert summary(copied)["sft"]["k"] == summary(copied)["trained"]["k"] == 3

    def test_of_one_checkpoint_are_the_same_in_every_run(self, finished: Path, tmp_path: Path) -> None:
        assert main(["evaluate", f"--checkpoint={finished}", f"--output={tmp_path}", "--ppo.gamma=0.5"]) == 0
        assert json.loads((tmp_path / "evaluation.json").read_text())["scores"] == summary(finished)["trained"]


class TestAStartThatFails:
    @pytest.mark.parametrize(
        "words",
        [
            ["--task=nope"],
            ["--sampling.temperature=0"],
            ["--trainer.max_time=tomorrow"],
            ["--trainer.strategy=ddp_spawn"],
            ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/em", *STOPPING],
            ["--data.prompts_per_iteration=4", "--embedded.validation_size=0"],
        ],
    )
    def test_leaves_nothing(self, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(tmp_path / "a" / "b", *words) == 2
        assert capsys.readouterr().err.startswith("error: ")
        assert list(tmp_path.iterdir()) == []

    def test_leaves_what_was_there(self, tmp_path: Path) -> None:
        (tmp_path / "cell.json").write_text("{}")
        assert run(tmp_path, "--policy=/no/where") == 2
        assert [path.name for path in tmp_path.iterdir()] == ["cell.json"]

    def test_also_after_the_warm_start(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ippo.PPOModule.on_fit_start", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path / "run")
        assert list(tmp_path.iterdir()) == []
