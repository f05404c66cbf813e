"""The recipe from end to end, very small, as a user runs it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from small_recipe import SMALL, numbers, summary
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ippo.recipes.math import main
from ippo.rollout.engines.hf import HFGenerate

TAGS = {
    "reward/mean",
    "reward/unfinished",
    "accuracy/em",
    "influence/kept_fraction",
    "influence/score_mean",
    "influence/gold_loss",
    "influence/effective_sample_size",
    "ppo/kl",
    "ppo/entropy",
    "ppo/explained_variance",
    "val/em",
    "val/mv",
    "val/em_greedy",
    "val/pass@k",
    "time/rollout",
    "time/score",
    "time/update",
}
UPDATE_TAGS = {"ppo/policy_loss", "ppo/value_loss", "ppo/clip_fraction"}  # where something survived


def run(directory: Path, *arguments: str) -> int:
    return main([*SMALL, f"--trainer.default_root_dir={directory}", *arguments])


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The first run makes its warm start, whichever tests ran before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPPO_CACHE", str(tmp_path_factory.mktemp("math-cache")))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two iterations; read only."""
    directory = tmp_path_factory.mktemp("runs") / "first"
    assert (
        run(
            directory,
            "--filter.class_path=ippo.callbacks.InfluenceFilterCallback",
            "--filter.init_args.on_empty=keep_all",
            "--filter.init_args.min_survival=0",
        )
        == 0
    )
    return directory


class TestWhatARunLeaves:
    def test_files(self, finished: Path) -> None:
        assert {path.name for path in finished.iterdir()} >= {"config.yaml", "summary.json", "checkpoints", "episodes"}
        assert not list(finished.glob("**/*unfinished*"))

    def test_nothing_outside_its_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "work").mkdir()
        monkeypatch.chdir(tmp_path / "work")
        monkeypatch.setenv("HOME", str(tmp_path / "work"))
        monkeypatch.setenv("IPPO_CACHE", str(tmp_path / "work" / "cache"))
        assert run(tmp_path / "work" / "run", "--trainer.max_epochs=1") == 0
        assert {path.name for path in tmp_path.iterdir()} == {"work"}
        assert {path.name for path in (tmp_path / "work").iterdir()} == {"run", "cache"}

    def test_summary(self, finished: Path) -> None:
        found = summary(finished)
        assert found.keys() >= {"sft", "trained", "iterations", "stopped_by", "seed", "device", "versions"}
        for scores in (found["sft"], found["trained"]):
            shares = {"em", "em_greedy", "mv", "pass_at_k", "false_positive", "unverifiable", "hacked", "reward"}
            assert scores.keys() == {*shares, "k", "n"}
            assert (scores["k"], scores["n"]) == (2, 4)
            assert all(0 <= scores[name] <= 1 for name in ("em", "mv", "pass_at_k"))
            of_the_right = (scores["false_positive"], scores["unverifiable"])
            if scores["em"]:
                assert of_the_right[0] >= of_the_right[1] == 0.0  # the embedded task knows its true steps
            else:
                assert of_the_right == (None, None)
        assert len(found["iterations"]) == 2
        for iteration in found["iterations"]:
            assert iteration.keys() >= {"kept_fraction", "effective_sample_size", "seconds"}
            assert all(iteration["seconds"][phase] > 0 for phase in ("rollout", "scoring", "update"))
        assert found["stopped_by"] == "max_epochs"
        assert found["seed"] == 0
        assert torch.__version__.startswith(found["versions"]["torch"])  # which may add +cu128

    def test_configuration(self, finished: Path) -> None:
        config = yaml.safe_load((finished / "config.yaml").read_text())
        assert config["tiny"]["hidden_size"] == 16
        assert config["trainer"]["max_epochs"] == 2
        assert config["seed_everything"] == 0

    def test_checkpoints_that_load_without_running_code(self, finished: Path) -> None:
        (path,) = (finished / "checkpoints").glob("*.ckpt")
        checkpoint = torch.load(path, weights_only=True)
        assert checkpoint["epoch"] == 1
        assert not [key for key in checkpoint["state_dict"] if "reference" in key]

    def test_episodes(self, finished: Path, tmp_path: Path) -> None:
        files = str(finished / "episodes" / "*.parquet")
        table = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path), split="train")
        assert len(table) == 2 * 8
        assert set(table.column_names) >= {"iteration", "prompt", "response", "reward", "correct", "faithful"}
        assert set(table.column_names) >= {"score", "weight", "kept", "reason"}
        assert set(table["iteration"]) == {0, 1}

    def test_curves(self, finished: Path) -> None:
        events = EventAccumulator(str(finished / "ppo")).Reload()
        assert set(events.Tags()["scalars"]) >= TAGS | UPDATE_TAGS
        assert events.Tags()["histograms"] == ["influence/scores"]
        assert "sft/loss" in EventAccumulator(str(finished / "sft")).Reload().Tags()["scalars"]


class TestRunningAgain:
    def test_reuses_the_warm_start(self, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(tmp_path / "second", "--trainer.max_epochs=1") == 0
        assert "Warm start: reused." in capsys.readouterr().out
        assert summary(tmp_path / "second")["sft"] == summary(finished)["sft"]

    def test_from_its_configuration_repeats_every_number(self, finished: Path, tmp_path: Path) -> None:
        again = tmp_path / "again"
        assert main([f"--config={finished / 'config.yaml'}", f"--trainer.default_root_dir={again}"]) == 0
        assert numbers(again) == numbers(finished)

    def test_with_another_seed_gives_others(self, finished: Path, tmp_path: Path) -> None:
        again = tmp_path / "again"
        arguments = [f"--config={finished / 'config.yaml'}", f"--trainer.default_root_dir={again}"]
        assert main([*arguments, "--seed_everything=1", "--sft.steps=5"]) == 0
        assert summary(again)["iterations"] != summary(finished)["iterations"]

    def test_resume_goes_on_where_it_stopped(self, tmp_path: Path) -> None:
        arguments = ("--filter=none", "--ppo.schedule=constant")
        assert run(tmp_path / "whole", *arguments, "--trainer.max_epochs=4") == 0
        assert run(tmp_path / "parts", *arguments) == 0
        assert len(summary(tmp_path / "parts")["iterations"]) == 2
        first = tmp_path / "parts" / "episodes" / "iteration-00000-rank-00.parquet"
        written = first.stat().st_mtime_ns
        assert run(tmp_path / "parts", *arguments, "--trainer.max_epochs=4", "--resume") == 0
        assert len(summary(tmp_path / "parts")["iterations"]) == 4
        assert len(list((tmp_path / "parts" / "episodes").iterdir())) == 4
        assert first.stat().st_mtime_ns == written  # it did not start anew
        assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")

    def test_resume_needs_no_more_than_the_directory(
        self, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        directory = tmp_path / "run"
        shutil.copytree(finished, directory)
        seen: list[Any] = []
        monkeypatch.setattr("ippo.recipes.train.make", lambda options, *_: seen.append(options))
        assert main([f"--trainer.default_root_dir={directory}", "--resume", "--trainer.max_epochs=4"]) == 0
        (options,) = seen
        assert options.tiny.hidden_size == 16
        assert options.trainer.max_epochs == 4

    def test_resume_goes_on_after_an_iteration_that_nothing_survived(self, tmp_path: Path) -> None:
        arguments = (
            "--sampling.max_new_tokens=1",  # so nothing is finished, nothing is rewarded, and nothing has a gradient
            "--filter.class_path=ippo.callbacks.InfluenceFilterCallback",
            "--filter.init_args.min_survival=0",
        )
        assert run(tmp_path, *arguments, "--trainer.max_epochs=1") == 0
        assert summary(tmp_path)["iterations"][0]["kept_fraction"] == 0.0
        assert run(tmp_path, *arguments, "--resume") == 0
        assert len(summary(tmp_path)["iterations"]) == 2

    def test_after_a_mistake_needs_no_other_directory(self, tmp_path: Path) -> None:
        assert run(tmp_path / "run", "--task=nope") == 2
        assert run(tmp_path / "run", "--sft.steps=0", "--trainer.max_epochs=1") == 0


@pytest.mark.parametrize("name", ["last_block", "paper", "uniform", "tempered", "probe"])
def test_filters_by_name(tmp_path: Path, name: str) -> None:
    assert run(tmp_path, f"--filter={name}", "--trainer.max_epochs=1") == 0
    (iteration,) = summary(tmp_path)["iterations"]
    assert iteration["kept_fraction"] < 1.0
    assert iteration["effective_sample_size"] <= iteration["kept_fraction"] + 1e-6
    if name in ("last_block", "uniform", "probe"):
        assert iteration["effective_sample_size"] == pytest.approx(iteration["kept_fraction"])


def test_plain_ppo(tmp_path: Path) -> None:
    assert run(tmp_path, "--filter=none", "--trainer.max_epochs=1") == 0
    (iteration,) = summary(tmp_path)["iterations"]
    assert (iteration["kept_fraction"], iteration["effective_sample_size"]) == (1.0, 1.0)
    tags = EventAccumulator(str(tmp_path / "ppo")).Reload().Tags()["scalars"]
    assert not [tag for tag in tags if tag.startswith("influence/")]


def test_a_filter_by_class_path(tmp_path: Path) -> None:
    weight = "--filter.init_args.weight"
    arguments = [
        "--filter.class_path=ippo.callbacks.InfluenceFilterCallback",
        "--filter.init_args.scorer.class_path=ippo.influence.ExactScorer",
        "--filter.init_args.scorer.init_args.backend=loop",
        "--filter.init_args.keep.class_path=ippo.influence.RandomMatched",
        f"{weight}.class_path=ippo.influence.Proportional",
        f"{weight}.init_args.temper=0.5",
    ]
    assert run(tmp_path, *arguments, "--trainer.max_epochs=1") == 0
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["filter"]["init_args"]["weight"]["init_args"]["temper"] == 0.5
    files = str(tmp_path / "episodes" / "*.parquet")
    table = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"), split="train")
    assert set(table["reason"]) - {""} == {"drawn at random"}


def test_without_logger_bar_and_checkpoints_the_summary_is_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    off = [f"--trainer.{name}=false" for name in ("logger", "enable_progress_bar", "enable_checkpointing")]
    assert run(tmp_path / "off", *off) == 0
    assert "Iteration" not in capsys.readouterr().err
    assert run(tmp_path / "on") == 0
    assert numbers(tmp_path / "off") == numbers(tmp_path / "on")
    assert not (tmp_path / "off" / "checkpoints").exists()


class TestBadInput:
    """Exit code 2, one line that says what to write instead, no traceback, no rollout."""

    @pytest.fixture(autouse=True)
    def _no_rollout(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise AssertionError("a rollout was made")

        monkeypatch.setattr(HFGenerate, "generate", fail)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--task=nope"], ["task = 'nope'", "embedded"]),
            (["--policy=/no/where"], ["policy = '/no/where'", "there is no such directory"]),
            (["--layout=heap"], ["layout = 'heap'", "separate"]),
            (["--filter=magic"], ["filter = 'magic'", "paper", "none"]),
            (["--ppo.minibatch_size=0"], ["ppo.minibatch_size = 0", "at least 1"]),
            (["--ppo.advantage=rloo"], ["ppo.kl_place = 'reward'", "kl_place=loss"]),
            (["--ppo.lam=often"], ["ppo.lam = 'often'", "use a number"]),
            (["--ppo.nope=3"], ["ppo.nope"]),
            (["--sampling.temperature=0"], ["sampling.temperature = 0", "above 0"]),
            (["--sampling.top_p=0.9"], ["sampling.top_p = 0.9", "1.0"]),
            (["--embedded.gold_size=0"], ["embedded.gold_size = 0", "at least one row"]),
            (["--embedded.nonsense=0.9"], ["nonsense", "at most 1"]),
            (["--tiny.context=16"], ["task.", "context", "16", "remove"]),
            (["--tiny.context=16", "--sft.steps=0"], ["task.", "context"]),
            (["--tiny.context=40", "--sft.steps=0", "--sampling.max_new_tokens=8"], ["task.gold", "context is 40"]),
            (["--trainer.max_epochs=often"], ["trainer.max_epochs = 'often'", "a whole number"]),
            (["--config=/no/where.yaml"], ["/no/where.yaml", "no such file"]),
            (["--resume"], ["resume", "no checkpoint"]),
            (
                ["--filter.class_path=ippo.callbacks.InfluenceFilterCallback", "--filter.init_args.min_survival=3"],
                ["min_survival", "3", "between 0 (never stop) and 1"],
            ),
            (
                ["--filter.class_path=ippo.callbacks.InfluenceFilterCallback", "--filter.init_args.patience=0"],
                ["patience", "0", "at least 1"],
            ),
        ],
        ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
    )
    def test_is_told_in_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
    ) -> None:
        self.check(run(tmp_path / "run", *arguments), capsys, words)

    def check(self, code: int, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
        lines = capsys.readouterr().err.splitlines()
        assert code == 2
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        assert all(word in lines[0] for word in words)

    def test_a_directory_that_cannot_be_written(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "file").touch()
        words = ["trainer.default_root_dir = ", str(tmp_path / "file" / "run"), "cannot be written"]
        self.check(run(tmp_path / "file" / "run"), capsys, words)

    def test_a_directory_that_holds_a_run(
        self, tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = (finished / "config.yaml").read_text()
        capsys.readouterr()
        self.check(run(finished, "--ppo.gamma=0.5"), capsys, ["it holds another run", "--resume"])
        assert (finished / "config.yaml").read_text() == before

    def test_a_configuration_with_an_unknown_key(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "mine.yaml").write_text("ppo:\n  gama: 1.0\n")
        self.check(run(tmp_path / "run", f"--config={tmp_path / 'mine.yaml'}"), capsys, ["ppo", "gama"])

    def test_a_configuration_that_is_no_yaml(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "mine.yaml").write_text("ppo: [1, 2\nfilter: {")
        self.check(run(tmp_path / "run", f"--config={tmp_path / 'mine.yaml'}"), capsys, ["config", "line 2"])


def test_early_stopping_on_the_gold_solutions_loss(tmp_path: Path) -> None:
    stopping = {
        "monitor": "influence/gold_loss",
        "patience": 1,
        "min_delta": 100,  # no iteration falls so much: the second is the last
        "check_on_train_epoch_end": "true",
    }
    words = [f"--trainer.callbacks.{option}={value}" for option, value in stopping.items()]
    assert run(tmp_path / "run", "--trainer.max_epochs=4", "--trainer.callbacks+=EarlyStopping", *words) == 0
    found = summary(tmp_path / "run")
    assert len(found["iterations"]) == 2
    assert all(one["gold_loss"] > 0 for one in found["iterations"])
    assert found["stopped_by"].startswith("Monitored metric influence/gold_loss did not improve")
