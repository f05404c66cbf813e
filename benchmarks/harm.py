"""Does the filter do harm where nothing is wrong, and what does it bring where much is?

    python benchmarks/harm.py --seeds 10 11 12 13 14 15 16 17 18 19

Six kinds of training (:mod:`kinds`), with right labels and with 30 % wrong ones, each with no filter, with the one of
the README as it stands, and with the same one that keeps by the score's sign. A training that has finished
(``runs/harm``) is not run again. Prints the section of ``docs/results/existing.md``, which ``benchmarks/existing.py``
writes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import lightning as L
from kinds import KINDS, Kind
from training import make_trainer, silence

from ippo.callbacks import InfluenceFilterCallback
from ippo.experiments.comparison.statistics import interval, signed
from ippo.influence import PositiveScore, ValidationDirection

WRONG = (0.0, 0.3)
ARMS = ("none", "filter", "sign")
SEEDS = range(10, 20)
"""Fresh ones: rule and lengths of the trainings were chosen on the ten before."""
BOUND = -0.02
"""No interval of the accuracy should reach below this where nothing is wrong."""
RUNS = Path(__file__).resolve().parents[1] / "runs" / "harm"

Cell = tuple[int, str, float, str]  # seed, kind, share of wrong labels, arm


def make_filter(kind: Kind, arm: str) -> InfluenceFilterCallback:
    """As in the README; ``sign`` keeps what has a positive score, whatever gold rows score."""
    return InfluenceFilterCallback(
        unit="batch",
        losses=kind.losses,
        direction=ValidationDirection(kind.gold, kind.losses),
        **({"keep": PositiveScore()} if arm == "sign" else {}),
    )


class Dropped(L.Callback):
    """The share of the rows that the filter dropped."""

    def __init__(self, influence_filter: InfluenceFilterCallback) -> None:
        self.influence_filter = influence_filter
        self.shares: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        applied = self.influence_filter.applied
        self.shares.append(0.0 if applied is None else 1 - applied.survival)


def run(cell: Cell) -> dict[str, float]:
    """One training: its accuracy on right labels, and what was dropped; read where it has been run before."""
    seed, name, wrong, arm = cell
    path = RUNS / f"{name.replace(', ', '-').replace(' ', '_')}-wrong{wrong}-{arm}-seed{seed}.json"
    if path.exists():
        return json.loads(path.read_text())
    silence()
    L.seed_everything(seed, verbose=False)
    kind, callbacks = KINDS[name](seed, wrong), list[L.Callback]()
    if arm != "none":
        callbacks = [influence_filter := make_filter(kind, arm), Dropped(influence_filter)]
    make_trainer(callbacks, kind.epochs, Path(tempfile.mkdtemp())).fit(kind.module, kind.train)
    found = {"accuracy": kind.accuracy()}
    if callbacks:
        found["dropped"] = statistics.mean(callbacks[1].shares)  # type: ignore[attr-defined]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    print(*cell, {key: round(value, 3) for key, value in found.items()}, flush=True)
    return found


def harm(seeds: list[int], jobs: int) -> list[str]:
    """The section: run what has not been run, and compare in pairs."""
    cells = [(seed, name, wrong, arm) for seed in seeds for name in KINDS for wrong in WRONG for arm in ARMS]
    cells.sort(key=lambda cell: cell[3] == "sign")  # what matters most first
    with ProcessPoolExecutor(jobs) as pool:
        found = dict(zip(cells, pool.map(run, cells), strict=True))

    def mean(name: str, wrong: float, arm: str, key: str) -> str:
        return f"{statistics.mean(found[seed, name, wrong, arm][key] for seed in seeds):.3f}"

    def pairs(name: str, wrong: float, arm: str) -> tuple[float, float, float]:
        accuracies = [[found[seed, name, wrong, one]["accuracy"] for seed in seeds] for one in (arm, "none")]
        return interval([a - b for a, b in zip(*accuracies, strict=True)])

    lines = [
        "## Does it do harm?",
        "",
        f"Six kinds of training (`benchmarks/kinds.py`), {len(seeds)} fresh seeds ({seeds[0]} to {seeds[-1]}) of data,",
        "weights and order; 64 gold rows, of digits 60. Accuracy on right labels, and paired differences from the same",
        "training without a filter, with bootstrap 95 % intervals: with the README's filter as it stands, and with",
        "`keep=PositiveScore()` in it.",
        "*Dropped* is the share of all training rows.",
    ]
    for wrong, title in zip(WRONG, ("Nothing is wrong", "30 % of the training labels are wrong"), strict=True):
        lines += [
            "",
            f"**{title}**",
            "",
            "| | without | the README's filter | dropped | by the sign | dropped |",
            "|---|---|---|---|---|---|",
        ]
        for name in KINDS:
            arms = " | ".join(
                f"{signed(*pairs(name, wrong, arm))} | {mean(name, wrong, arm, 'dropped')}" for arm in ARMS[1:]
            )
            lines.append(f"| {name} | {mean(name, wrong, 'none', 'accuracy')} | {arms} |")
    worse = [name for name in KINDS if pairs(name, 0.0, "filter")[1] < BOUND]
    met = "met" if not worse else f"missed by {'; '.join(worse)}"
    return [
        *lines,
        "",
        f"What was aimed at: where nothing is wrong, no interval of the README's filter below {BOUND}: {met}.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    options = parser.parse_args()
    print("\n".join(harm(options.seeds, options.jobs)))


if __name__ == "__main__":
    main()
