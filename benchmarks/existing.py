"""What the filter does for trainings that already exist: the digits and the poisoned rows of ``examples/``.

    python benchmarks/existing.py --seeds 0 1 2 3 4

Three arms a seed, all else equal: without the filter, with it, and with as many rows dropped at random. Then the
processor's time of a step without the filter and with it, in turn. A training that has finished (``runs/existing``) is
not run again. Writes ``docs/results/existing.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from pyarrow import parquet
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import binary_auroc

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import digits  # noqa: E402
import poisoned_sft  # noqa: E402
from harm import SEEDS, harm  # noqa: E402
from training import make_trainer, silence  # noqa: E402

from ippo.callbacks import InfluenceFilterCallback  # noqa: E402
from ippo.experiments.comparison.statistics import interval, signed  # noqa: E402
from ippo.influence import ExactScorer, LikeGold, PositiveScore, RandomMatched, ValidationDirection  # noqa: E402
from ippo.influence.backends import ghost_scores_and_norms  # noqa: E402
from ippo.influence.parameters import scored  # noqa: E402

ARMS = {"none": "without the filter", "filter": "with it", "bolder": "with `LikeGold(fdr=0.4)`", "random": "random"}
COST = 1.6
"""Of a plain step: what a filtered one should take, at most, whose direction is computed anew at need."""
HELD = (8, 1)
"""Batches that a direction is used for, at most: at need, and a fresh one for each."""


def arms(name: str) -> list[str]:
    """The poisoned rows are told by the sign, which has no rate."""
    return [arm for arm in ARMS if (name, arm) != ("poisoned", "bolder")]


class Project(NamedTuple):
    """One of the examples, ready to train."""

    module: L.LightningModule
    train: DataLoader
    judge: DataLoader
    wrong: Tensor  # [n] bool, which training rows are wrong
    gold: DataLoader
    losses: Callable[..., Tensor]
    epochs: int
    keep: LikeGold | PositiveScore
    parameters: Any
    row_id: Any


def make_digits(seed: int) -> Project:
    data = digits.Digits(seed)
    gold = DataLoader(data.gold, batch_size=60)
    train, test = data.train_dataloader(), data.test_dataloader()
    options = (40, LikeGold(), r"net\.4", lambda batch: batch[2])
    return Project(digits.Classifier(), train, test, data.flipped, gold, digits.losses, *options)


def make_poisoned(seed: int) -> Project:
    train = poisoned_sft.Capitals(3200, seed=3 * seed + 1, poison=0.25)
    gold, test = (DataLoader(poisoned_sft.Capitals(n, seed=3 * seed + 2 + k), n) for k, n in enumerate((64, 400)))
    options = (10, PositiveScore(min_fraction=0.7), 1, "row")
    module, losses = poisoned_sft.FineTuning(), poisoned_sft.losses
    return Project(module, DataLoader(train, 64, shuffle=True), test, train.poisoned, gold, losses, *options)


PROJECTS: dict[str, Callable[[int], Project]] = {"digits": make_digits, "poisoned": make_poisoned}


def make_filter(project: Project, arm: str, held: int = HELD[0], **options: Any) -> InfluenceFilterCallback:
    """The filter as the examples set it, or its random control."""
    return InfluenceFilterCallback(
        unit="batch",
        losses=project.losses,
        direction=ValidationDirection(project.gold, project.losses),
        scorer=ExactScorer(parameters=project.parameters),
        keep=LikeGold(fdr=0.4) if arm == "bolder" else RandomMatched(project.keep) if arm == "random" else project.keep,
        direction_every_n_batches=held,
        min_survival=0.0,
        **options,
    )


class Separation(L.Callback):
    """After each epoch, how well scores of all training rows tell right from wrong ones: the area under the curve."""

    def __init__(self, project: Project) -> None:
        self.project, self.areas = project, {"last layer": [], "all": [], "cosine": [], "per class": []}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        batch = list(self.project.train.dataset.tensors)  # type: ignore[attr-defined]
        direction = ValidationDirection(self.project.gold, self.project.losses).compute(pl_module)
        last = ExactScorer(parameters=self.project.parameters)
        with scored(pl_module):
            scores, norms = ghost_scores_and_norms(pl_module, self.project.losses, batch, direction)
        within = scores.clone()
        for label in batch[1].unique():
            members = batch[1] == label
            within[members] = (scores[members] - scores[members].mean()) / scores[members].std()
        found = {
            "last layer": last.score(pl_module, self.project.losses, [batch], direction),
            "all": scores,
            "cosine": scores / norms.sqrt().clamp(min=1e-12),
            "per class": within,
        }
        for name, values in found.items():
            ranks = values.argsort().argsort().float() / len(values)  # the area depends on the order alone
            self.areas[name].append(float(binary_auroc(ranks, (~self.project.wrong).long())))


def cell(name: str, arm: str, seed: int) -> dict[str, float]:
    """What one training came to, run now or before."""
    kept = ROOT / "runs" / "existing" / f"{name}-{arm}-seed{seed}.json"
    if not kept.exists():
        found = run(name, arm, seed)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found))
    return json.loads(kept.read_text())


def run(name: str, arm: str, seed: int) -> dict[str, float]:
    """One training: how good it became, and what was dropped over its second half."""
    silence()
    L.seed_everything(seed, verbose=False)
    project, folder = PROJECTS[name](seed), Path(tempfile.mkdtemp())
    callbacks: list[L.Callback] = []
    if arm != "none":
        callbacks.append(make_filter(project, arm, audit="audit", row_id=project.row_id))
    separation = Separation(project) if (name, arm) == ("digits", "filter") else None
    trainer = make_trainer([*callbacks, *([separation] if separation else [])], project.epochs, folder)
    trainer.fit(project.module, project.train)
    if name == "digits":
        found = {"judged": trainer.test(project.module, project.judge, verbose=False)[0]["test/accuracy"]}
    else:
        found = {"judged": trainer.validate(project.module, project.judge, verbose=False)[0]["val/loss"]}
    if callbacks:
        late = parquet.read_table(folder / "audit", filters=[("epoch", ">=", project.epochs // 2)]).to_pydict()
        dropped, wrong = ~torch.tensor(late["kept"]), project.wrong[late["id"]]
        found["dropped wrong"] = float(dropped[wrong].float().mean())
        found["dropped right"] = float(dropped[~wrong].float().mean())
    if separation:
        found |= {f"AUC {kind}": max(areas) for kind, areas in separation.areas.items()}
    print(name, arm, seed, {key: round(value, 3) for key, value in found.items()}, flush=True)
    return found


def seconds_a_step(name: str, held: int | None, epochs: int) -> float:
    """Seconds of the processor for a whole fit over its steps, without the filter where ``held`` is None."""
    L.seed_everything(0, verbose=False)
    project = PROJECTS[name](0)
    callbacks: list[L.Callback] = [] if held is None else [make_filter(project, "filter", held)]
    trainer = make_trainer(callbacks, epochs, Path(tempfile.mkdtemp()))
    start = time.process_time()  # one thread: other work on the machine does not count
    trainer.fit(project.module, project.train)
    return (time.process_time() - start) / (epochs * len(project.train))


def overhead(name: str, rounds: int) -> list[float]:
    """Median milliseconds of a step without the filter and with each way of it, in turn."""
    silence()
    epochs = 20 if name == "digits" else 2
    arms = (None, *HELD)
    turns = [[1000 * seconds_a_step(name, held, epochs) for held in arms] for _ in range(rounds + 1)]
    return [statistics.median(arm) for arm in zip(*turns[1:], strict=True)]  # the first one warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    parser.add_argument("--rounds", type=int, default=5, help="of the timing; 0 leaves it out")
    parser.add_argument("--harm-seeds", type=int, nargs="+", default=list(SEEDS), help="of the harm check")
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "results" / "existing.md")
    options = parser.parse_args()
    cells = [(name, arm, seed) for name in PROJECTS for arm in arms(name) for seed in options.seeds]
    with ProcessPoolExecutor(options.jobs) as pool:
        found = dict(zip(cells, pool.map(cell, *zip(*cells, strict=True)), strict=True))
    times = {name: overhead(name, options.rounds) for name in PROJECTS} if options.rounds else {}
    options.report.write_text(report(found, options.seeds, times, harm(options.harm_seeds, options.jobs)))
    print(options.report.read_text())


def report(
    found: dict[tuple[str, str, int], dict[str, float]], seeds: list[int], times: dict[str, Any], check: list[str]
) -> str:
    """The page under docs/results."""

    def mean(name: str, arm: str, key: str) -> str:
        values = [found[name, arm, seed].get(key) for seed in seeds]
        return "" if None in values else f"{statistics.mean(values):.3f}"  # type: ignore[type-var]

    def pairs(name: str, base: str) -> str:
        differences = [found[name, "filter", seed]["judged"] - found[name, base, seed]["judged"] for seed in seeds]
        return signed(*interval(differences))

    command = f"python benchmarks/existing.py --seeds {' '.join(map(str, seeds))}"
    lines = [
        "# The filter in trainings that already exist",
        "",
        f"`{command}` · {os.cpu_count()} cores, {platform.machine()}, one thread a training · python "
        f"{platform.python_version()} torch {torch.__version__} lightning {L.__version__}.",
        "",
        f"Means over {len(seeds)} seeds of data, weights and order; dropped shares are of the second half of training.",
        "*Random* drops as many rows of each batch as the filter's rule would, drawn at random.",
    ]
    titles = {
        "digits": "## Digits, 30 % of the labels wrong (`examples/digits.py`)",
        "poisoned": "## Words in capitals, 25 % of the rows poisoned (`examples/poisoned_sft.py`)",
    }
    for name, judged in (("digits", "test accuracy"), ("poisoned", "loss on clean rows")):
        lines += [
            "",
            titles[name],
            "",
            f"| | {judged} | wrong rows dropped | right rows dropped |",
            "|---|---|---|---|",
        ]
        for arm in arms(name):
            cells = " | ".join(mean(name, arm, key) for key in ("judged", "dropped wrong", "dropped right"))
            lines.append(f"| {ARMS[arm]} | {cells} |")
        lines += [
            "",
            f"Paired differences of the {judged}, mean and bootstrap 95 % interval over seeds: "
            f"with the filter − without {pairs(name, 'none')}; with it − random {pairs(name, 'random')}.",
        ]
        if name == "digits":
            areas = ", ".join(
                f"{label} {mean(name, 'filter', f'AUC {key}')}"
                for key, label in (
                    ("last layer", "scores of the last layer, which the filter uses,"),
                    ("all", "of all parameters"),
                    ("cosine", "cosine"),
                    ("per class", "standardised within each label"),
                )
            )
            lines += ["", f"Area under the ROC curve of right against wrong rows, best epoch: {areas}."]
    lines += ["", *check]
    if times:
        lines += [
            "",
            "## What it costs",
            "",
            "Milliseconds of the processor a step, whole fits over their steps, medians of fits in turn: without the",
            f"filter, with a direction that is computed anew at need, after {HELD[0]} batches at most, and with",
            "a fresh one for each batch.",
            "",
            "| | without | at need | of a plain step | fresh | of a plain step |",
            "|---|---|---|---|---|---|",
            *(
                f"| {name} | {a:.2f} | {b:.2f} | {b / a:.2f} | {c:.2f} | {c / a:.2f} |"
                for name, (a, b, c) in times.items()
            ),
            "",
            f"What was aimed at: at need, a step within {COST} of a plain one: "
            f"{'met' if max(b / a for a, b, _ in times.values()) <= COST else 'missed'}.",
        ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
