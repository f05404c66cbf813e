"""The alarm on the recipe's command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from small_recipe import SMALL
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ippo.recipes.math import main

EASILY_ALARMED = [
    "--monitor.detector=RewardHackingDetector",
    "--monitor.detector.baseline=0.01",
    "--monitor.detector.warmup=1",
    "--monitor.detector.patience=1",
    "--monitor.detector.decision_interval=1e-6",
]


def run(directory: Path, *arguments: str) -> int:
    options = ["--trainer.limit_val_batches=0", "--embedded.verifier_error=0.5", "--filter.min_survival=0"]
    return main([*SMALL, *options, f"--trainer.default_root_dir={directory}", *arguments])


def test_stops_the_run_if_asked(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="reward hacking"):
        assert run(tmp_path, "--trainer.max_epochs=9", "--monitor.stop=true", *EASILY_ALARMED) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert 1 < len(summary["iterations"]) < 9
    assert summary["stopped_by"].startswith("reward hacking from iteration ")
    assert not summary["interrupted"]
    files = {path.suffix for path in (tmp_path / "hacking").iterdir()}
    assert files == {".parquet", ".ckpt"}
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["monitor"]["detector"]["init_args"]["baseline"] == 0.01
    assert main(["evaluate", f"--checkpoint={tmp_path / 'hacking' / 'before.ckpt'}"]) == 0


def curves(directory: Path) -> set[str]:
    return {tag for tag in EventAccumulator(str(directory / "ppo")).Reload().Tags()["scalars"] if "hacking/" in tag}


def test_listens_to_the_filter_without_being_asked(tmp_path: Path) -> None:
    assert run(tmp_path, "--trainer.max_epochs=1") == 0
    assert curves(tmp_path) >= {"hacking/cusum", "hacking/usual", "hacking/survival_rewarded"}


@pytest.mark.parametrize(
    "others",
    [["--filter=none"], ["--filter.direction=BufferDirection"]],
    ids=["no filter", "a direction of the buffer"],
)
def test_is_silent_where_no_score_tells_of_gold_and_refuses_to_stop_by_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], others: list[str]
) -> None:
    others = [*others, "--trainer.max_epochs=1"]
    own = ["--trainer.limit_val_batches=0", *others]
    assert main([*SMALL, f"--trainer.default_root_dir={tmp_path / 'run'}", *own]) == 0
    assert not curves(tmp_path / "run")
    capsys.readouterr()
    assert main([*SMALL, f"--trainer.default_root_dir={tmp_path / 'stop'}", *own, "--monitor.stop=true"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: monitor.stop = True: ")
    assert "--filter.dry_run true" in line
