"""A trained policy comes out again, and a run's checkpoints stand alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipe import SMALL
from transformers import AutoModelForCausalLM, AutoTokenizer

from ippo.recipes import start
from ippo.recipes.math import main

ONE = [*SMALL, "--trainer.max_epochs=1", "--filter=none", "--evaluation.temperature=0.001"]


@pytest.fixture(scope="module", params=["separate", "lora"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One iteration in each kind of layout, its cache emptied afterwards."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPPO_CACHE", str(folder / "cache"))
        place = f"--trainer.default_root_dir={folder / 'run'}"
        assert main([*ONE, place, f"--layout={request.param}", "--lora.rank=4"]) == 0
    shutil.rmtree(folder / "cache")
    return folder / "run"


def weights(folder: Path) -> dict[str, Any]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def equal(first: Path, second: Path) -> bool:
    ours, theirs = weights(first), weights(second)
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_run_leaves_its_policy_and_export_writes_the_same(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IPPO_CACHE", str(tmp_path / "empty"))
    assert main(["export", f"--checkpoint={run}", f"--output={tmp_path / 'out'}"]) == 0
    assert equal(tmp_path / "out", run / "policy")
    assert not (tmp_path / "empty").exists()  # nothing was trained again
    said = re.sub(r"\s*\n\s*", "\n", capsys.readouterr().out)
    assert "Policy, as a Hugging Face directory" in said
    lines = said[said.index("from transformers import pipeline") :].splitlines()[:3]
    assert str(tmp_path / "out") in lines[1]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.decode(tokenizer("8 pens")["input_ids"]) == "8 pens"


def test_a_checkpoint_scores_what_its_run_reported_though_the_cache_is_empty(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPPO_CACHE", str(tmp_path / "empty"))
    assert main(["evaluate", f"--checkpoint={run}", f"--output={tmp_path}"]) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["scores"] == json.loads((run / "summary.json").read_text())["trained"]
    assert not (tmp_path / "empty").exists()


def test_resuming_goes_on_from_the_very_same_start(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        shutil.copytree(run, tmp_path / name)
        monkeypatch.setenv("IPPO_CACHE", str(tmp_path / f"cache of {name}"))
        if name == "two":  # what would train another warm start, as a library's version, changes nothing
            monkeypatch.setattr("ippo.recipes.warm_start.fingerprint", lambda *_, **__: "another")
        assert main([f"--trainer.default_root_dir={tmp_path / name}", "--resume", "--trainer.max_epochs=2"]) == 0
        assert not (tmp_path / f"cache of {name}").exists()
    assert equal(tmp_path / "one" / "policy", tmp_path / "two" / "policy")
    assert len(json.loads((tmp_path / "one" / "summary.json").read_text())["iterations"]) == 2


class TestWhatIsRefused:
    def line(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
        assert main(list(arguments)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    def test_another_base(self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        if "layout: separate" in (run / "config.yaml").read_text():
            pytest.skip("all its weights are kept")
        found = self.line(capsys, "export", f"--checkpoint={run}", f"--output={tmp_path / 'o'}", "--seed_everything=1")
        assert "error: policy = 'LlamaForCausalLM': its weights are not those that" in found

    def test_another_tokenizer(self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        copied = tmp_path / "run"
        shutil.copytree(run, copied)
        kept = start.start_of(copied) / "origin.json"
        kept.write_text(json.dumps({**json.loads(kept.read_text()), "tokenizer": "other"}))
        found = self.line(capsys, "export", f"--checkpoint={copied}", f"--output={tmp_path / 'out'}")
        assert found.startswith("error: tokenizer = ")

    def test_a_start_that_is_lost(
        self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("IPPO_CACHE", str(tmp_path / "empty"))
        copied = tmp_path / "run"
        shutil.copytree(run, copied)
        shutil.rmtree(start.start_of(copied))
        arguments = [f"--trainer.default_root_dir={copied}", "--resume", "--trainer.max_epochs=2"]
        assert "what it started from is neither there (start/) nor in the cache" in self.line(capsys, *arguments)

    @pytest.mark.parametrize("name", ["checkpoint", "output"])
    def test_a_word_that_is_missing(self, name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        given = [f"--output={run / 'x'}"] if name == "checkpoint" else [f"--checkpoint={run}"]
        assert f"error: {name} = None: say --{name} DIRECTORY" in self.line(capsys, "export", *given)

    def test_a_directory_that_is_taken(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        found = self.line(capsys, "export", f"--checkpoint={run}", f"--output={run}")
        assert "there is something already" in found
