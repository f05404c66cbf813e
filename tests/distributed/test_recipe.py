"""The recipe on two processes, started as a user starts it: Lightning launches the second one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import parquet

import ippo

ARGUMENTS = """
--tiny.hidden_size=16 --tiny.layers=1 --tiny.heads=2 --tiny.intermediate_size=32 --tiny.vocab_size=300
--embedded.train_size=32 --embedded.gold_size=8 --embedded.validation_size=5 --embedded.test_size=5 --sft.steps=20
--embedded.max_steps=2 --sft.learning_rate=0.02 --data.prompts_per_iteration=4 --ppo.samples_per_prompt=2
--sampling.max_new_tokens=16 --evaluation.samples=2 --filter=paper --trainer.max_epochs=2
--trainer.check_val_every_n_epoch=1 --trainer.accelerator=cpu --trainer.devices=2
--trainer.enable_progress_bar=false
"""


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_leaves_one_run_of_both_ranks(tmp_path: Path, strategy: str) -> None:
    command = [sys.executable, "-m", "ippo.recipes.math", *ARGUMENTS.split(), f"--trainer.strategy={strategy}"]
    path = os.pathsep.join(filter(None, [str(Path(ippo.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command,  # without a directory: both must make the same one
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "IPPO_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test problems, 2 answers each") == done.stdout.count("Warm start:") == 1
    (folder,) = (tmp_path / "runs").iterdir()
    assert {path.name for path in folder.iterdir()} == {
        "answers.json", "checkpoints", "config.yaml", "episodes", "policy", "ppo", "report.html", "sft", "start",
        "summary.json",
    }  # fmt: skip
    assert len(json.loads((folder / "summary.json").read_text())["iterations"]) == 2
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["iteration-00001.ckpt"]
    names = [f"iteration-{iteration:05d}-rank-{rank:02d}.parquet" for iteration in range(2) for rank in range(2)]
    assert sorted(path.name for path in (folder / "episodes").iterdir()) == names
    first, second = (set(parquet.read_table(folder / "episodes" / name)["prompt"].to_pylist()) for name in names[:2])
    assert len(first) == len(second) == 2
    assert not first & second
