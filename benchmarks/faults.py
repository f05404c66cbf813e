"""kill -9 at random moments of a training, again and again: what is left each time, and where the run ends.

    python benchmarks/faults.py --kills 20

One run is left alone. Another, with the same seed, is killed so many times and resumed after each; in the end both must
be equal bit for bit. Writes ``docs/results/faults.md``, and exits with 1 if anything was lost or differs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pyarrow import parquet

from ippo.recipes.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[1]
RECIPE = [
    "--tiny.hidden_size=32",
    "--tiny.layers=1",
    "--tiny.heads=2",
    "--tiny.intermediate_size=64",
    "--embedded.train_size=64",
    "--embedded.validation_size=8",
    "--embedded.test_size=8",
    "--sft.steps=100",
    "--sft.learning_rate=0.02",
    "--data.prompts_per_iteration=16",
    "--ppo.samples_per_prompt=2",
    "--ppo.minibatch_size=8",
    "--trainer.check_val_every_n_epoch=4",
    "--trainer.enable_progress_bar=false",
    "--trainer.accelerator=cpu",
]


@dataclass(frozen=True)
class Kill:
    """What one kill left behind.

    Args:
        seconds: after training had started, or gone on.
        during: what was being done, as far as the files tell.
        finished: iterations that a resumed run does not repeat.
        files: episode files and checkpoints that were read.
        faults: what should not be; empty when all is well.
    """

    seconds: float
    during: str
    finished: int
    files: int
    faults: list[str]


def start(folder: Path, iterations: int) -> subprocess.Popen[bytes]:
    """The recipe in a process of its own; it resumes where there is something to resume."""
    resume = ["--resume"] if list(folder.glob("checkpoints/*.ckpt")) else []
    if not resume:
        (folder / "summary.json").unlink(missing_ok=True)
    arguments = [*RECIPE, f"--trainer.max_epochs={iterations}", f"--trainer.default_root_dir={folder}", *resume]
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", "ippo.recipes.math", *arguments], stdout=log, stderr=log)


def finish(folder: Path, iterations: int) -> None:
    """Let the recipe run to its end."""
    code = start(folder, iterations).wait()
    if code:
        raise SystemExit((folder.parent / f"{folder.name}.log").read_text() + f"\nthe recipe ended with {code}")


def kill_after(folder: Path, iterations: int, seconds: float) -> bool:
    """Start, wait until training has begun, and kill some time later; whether there was something left to kill."""
    before = len(list(folder.glob("ppo/events*")))
    process = start(folder, iterations)
    while (
        process.poll() is None and len(list(folder.glob("ppo/events*"))) < before + 2
    ):  # the test before, then the fit
        time.sleep(0.005)
    time.sleep(seconds)
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return alive


def inspect(folder: Path, seconds: float, finished_before: int) -> Kill:
    """Read everything that the killed run has left."""
    faults: list[str] = []
    unfinished = [path.name for path in folder.rglob("*.unfinished")]
    episodes = sorted(folder.glob("episodes/*.parquet"))
    for path in episodes:
        try:
            parquet.read_table(path)
        except Exception as error:  # whatever a torn file may cause
            faults.append(f"{path.name}: {error}")
    checkpoints = list(folder.glob("checkpoints/*.ckpt"))
    newest = RunDirectory(folder, "math", resume=True).newest_checkpoint() if checkpoints else None
    epochs = [torch.load(path, weights_only=True)["epoch"] for path in checkpoints]
    if newest is not None and torch.load(newest, weights_only=True)["epoch"] != max(epochs):
        faults.append("the newest checkpoint is not the one that would be resumed")
    finished = max(epochs, default=-1) + 1
    begun = len({path.name.split("-rank")[0] for path in episodes})  # an iteration's file follows its scoring
    if finished < max(begun - 1, finished_before):
        faults.append(f"{max(begun - 1, finished_before) - finished} finished iterations are lost")
    during = "rollout, scoring or validation" if begun <= finished else "update"
    if unfinished:
        during = "writing a checkpoint" if "ckpt" in unfinished[0] else "writing episodes"
    return Kill(seconds, during, finished, len(episodes) + len(checkpoints), faults)


def content(folder: Path) -> dict[str, Any]:
    """Weights, figures and episodes of a finished run, without the seconds that anything took."""
    path = max(folder.glob("checkpoints/*.ckpt"))  # a kill between a new one and the removal of the old leaves both
    summary = json.loads((folder / "summary.json").read_text())
    for iteration in summary["iterations"]:
        del iteration["seconds"]
    return {
        "weights": {name: value.tolist() for name, value in torch.load(path, weights_only=True)["state_dict"].items()},
        "summary": summary,
        "episodes": {path.name: parquet.read_table(path).to_pylist() for path in folder.glob("episodes/*.parquet")},
    }


def report(kills: Sequence[Kill], differing: Sequence[str], arguments: argparse.Namespace) -> str:
    """The page for the docs."""
    where = Counter(kill.during for kill in kills)
    broken = sum(len(kill.faults) for kill in kills)
    lines = [
        "# Faults: kill -9 at random moments",
        "",
        f"`python benchmarks/faults.py --kills {arguments.kills} --iterations {arguments.iterations} "
        f"--seed {arguments.seed}` · {os.cpu_count()} cores, {platform.machine()} · torch {torch.__version__}.",
        "",
        "A small run of the recipe, killed at a random moment of its training and resumed, again and again; beside it "
        "the same run left alone. After each kill every episode file and checkpoint is read.",
        "",
        "| | |",
        "|---|---|",
        f"| kills | {len(kills)} |",
        f"| resumes that went on from the last finished iteration | {len(kills) - broken} |",
        f"| corrupt files, lost iterations | {broken} |",
        f"| in the end, of weights, summary and episodes, differing from the run left alone | "
        f"{', '.join(differing) or 'none'} |",
        "",
        "Where the kills fell, as far as files tell: "
        + ", ".join(f"{what} {count}" for what, count in where.most_common())
        + ".",
        "",
        "| kill | seconds into training | during | iterations finished | files read | faults |",
        "|---|---|---|---|---|---|",
        *(
            f"| {number} | {kill.seconds:.2f} | {kill.during} | {kill.finished} | {kill.files} | "
            f"{'; '.join(kill.faults) or 'none'} |"
            for number, kill in enumerate(kills, start=1)
        ),
        "",
        "Chance seldom finds the millisecond in which a file is being written: kills at exactly such moments are in "
        "`tests/faults/test_kill.py`.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Run the benchmark; 0 if nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=80, help="more than the kills leave time for")
    parser.add_argument("--window", type=float, default=2.0, help="seconds of training in which a kill may fall")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "faults.md")
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    kills: list[Kill] = []
    with tempfile.TemporaryDirectory() as base:
        alone, killed = Path(base) / "alone", Path(base) / "killed"
        killed.mkdir()
        while len(kills) < arguments.kills:
            seconds = moments.uniform(0.0, arguments.window)
            if not kill_after(killed, arguments.iterations, seconds):
                raise SystemExit("the run ended before it was killed often enough: use more iterations")
            kills.append(inspect(killed, seconds, kills[-1].finished if kills else 0))
            print(f"kill {len(kills)}: {kills[-1]}", flush=True)
        for folder in (killed, alone):
            folder.mkdir(exist_ok=True)
            finish(folder, arguments.iterations)
        found, expected = content(killed), content(alone)
    differing = [name for name in expected if repr(found[name]) != repr(expected[name])]
    arguments.output.write_text(report(kills, differing, arguments))
    return int(bool(differing or any(kill.faults for kill in kills)))


if __name__ == "__main__":
    sys.exit(main())
