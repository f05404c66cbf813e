"""``ippo demo``: two ordinary runs from one warm start, side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from small_recipe import SMALL

from ippo.experiments.demo import main

WRONG_ARGUMENT = 2


def test_the_filter_and_plain_ppo_train_from_one_warm_start_and_stand_side_by_side(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPPO_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "demo"
    assert main([*SMALL, "--filter", "paper", "--evaluation.reward=true", "--out", str(out)]) == 0
    filtered, plain = (json.loads((out / name / "summary.json").read_text()) for name in ("i-ppo", "plain-ppo"))
    assert filtered["sft"] == plain["sft"]
    said = capfd.readouterr().out
    table = said[said.index("side by side") :]
    assert "┃ warm start ┃ I-PPO ┃ plain PPO ┃" in table
    assert f"plain PPO: the verifier believes {plain['trained']['reward']:.0%} of its answers" in table
    config = yaml.safe_load((out / "plain-ppo" / "config.yaml").read_text())
    assert (config["filter"], config["ppo"]["learning_rate"]) == ("none", 2e-4)
    assert yaml.safe_load((out / "i-ppo" / "config.yaml").read_text())["filter"] != "none"


@pytest.mark.parametrize("words", [["--resume"], ["--trainer.default_root_dir=here"]])
def test_what_the_demo_sets_itself_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == WRONG_ARGUMENT
    assert "name its own directory by --out" in capsys.readouterr().err


def test_a_run_that_fails_ends_the_demo_with_its_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--ppo.inner_epochs=0", "--out", str(tmp_path)]) == WRONG_ARGUMENT
    assert "side by side" not in capfd.readouterr().out
