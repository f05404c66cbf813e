"""A few problems that can be trusted, and a verifier that cannot: what guards where the gold solutions are of no use?

    python benchmarks/trusted.py --seeds 300 301 302 303 304

The embedded task with the hole ``short``; its gold solutions are in words, as somebody else would write them.
``ppo_ptx`` trains on them, ``ippo_last_block`` filters by them, ``ippo_answers`` filters by the policy's own answers to
64 of the gold problems an iteration, judged by the truth. The control trains by plain PPO on as many such problems
alone, with the truth as its reward. All of a seed go out from one warm start. Run it again and only what is missing is
run; prints the tables.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from preferences import LOOKS, seen

from ippo.experiments import compare
from ippo.experiments.comparison.page import table
from ippo.experiments.comparison.statistics import interval, signed

LENGTH = ("--trainer.max_epochs", "24", "--trainer.limit_val_batches", "0", "--evaluation.samples", "4")
OPTIONS = ("--embedded.verifier_hole", "short", "--embedded.gold_style", "words", *LENGTH)
ANSWERS, FILTER, PTX, CONTROL = "ippo_answers", "ippo_last_block", "ppo_ptx", "ppo_trusted"
LABELS = {
    "warm start": "warm start",
    PTX: "PPO, trained on the gold solutions as well",
    FILTER: "filter by the gold solutions",
    ANSWERS: "filter by own answers to 64 gold problems",
    CONTROL: "PPO on 64 such problems alone, rewarded by the truth",
}
PROBLEMS = 64  # of an iteration, and so of the direction
FIGURES = ("em", "reward", "em_greedy", "hacked")


def train_on_trusted(out: Path, seed: int) -> None:
    """The control: every option of the seed's other runs, but problems, reward, filter and rate."""
    like, folder = out / f"{ANSWERS}-seed{seed}", out / f"{CONTROL}-seed{seed}"
    if (folder / "summary.json").exists():
        return
    words = ["--config", str(like / "config.yaml"), "--policy", str(like / "start"), "--sft.steps", "0"]
    words += ["--filter", "none", "--ppo.learning_rate", "2e-4", "--trainer.default_root_dir", str(folder)]
    words += ["--embedded.train_size", str(PROBLEMS), "--embedded.verifier_hole", "none"]
    words += ["--embedded.verifier_error", "0", "--embedded.gold_style", "same"]
    with (out / f"{CONTROL}-seed{seed}.log").open("w") as said:
        subprocess.run([sys.executable, "-m", "ippo.recipes.math", *words], check=True, stdout=said, stderr=said)


def tables(out: Path, seeds: list[int]) -> str:
    """What is finished of every policy."""
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in (PTX, FILTER, ANSWERS, CONTROL)}
    for arm, runs in found.items():
        runs += [json.loads((out / f"{arm}-seed{seed}" / "summary.json").read_text()) for seed in seeds]

    def of(policy: str, name: str) -> list[float]:
        when = "sft" if policy == "warm start" else "trained"
        return [run[when][name] or 0.0 for run in found.get(policy, found[ANSWERS])]

    def mean(policy: str) -> list[str]:
        return [f"{np.mean(of(policy, name)):.3f}" for name in FIGURES]

    rows = [[label, *mean(policy)] for policy, label in LABELS.items()]
    pairs = []
    for theirs in ("warm start", PTX, FILTER, CONTROL):
        both = [(of(ANSWERS, name), of(theirs, name)) for name in ("em", "em_greedy", "hacked")]
        each = [signed(*interval([a - b for a, b in zip(ours, base, strict=True)])) for ours, base in both]
        pairs.append([f"own answers − {LABELS[theirs]}", *each])
    lines = [f"Seeds {seeds}", "", *table(["policy", "EM", "verifier believes", "greedy EM", "hacked"], rows), ""]
    return "\n".join([*lines, *table(["difference", "EM", "greedy EM", "hacked"], pairs)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[300, 301, 302, 303, 304])
    parser.add_argument("--out", type=Path, default=Path("runs/trusted"))
    options = parser.parse_args()
    for count in range(1, len(options.seeds) + 1):
        seeds = options.seeds[:count]
        words = ["--arms", ANSWERS, FILTER, PTX, "--seeds", *map(str, seeds), "--out", str(options.out), "--jobs", "1"]
        if code := compare.main([*words, *OPTIONS]):
            sys.exit(code)
        train_on_trusted(options.out, seeds[-1])
        print(tables(options.out, seeds), flush=True)
        print(f"\nFilter by the gold solutions, seed {seeds[-1]}:\n")
        head = ["score above 0", *(f"iteration {look}" for look in LOOKS)]
        print("\n".join(table(head, seen(options.out / f"{FILTER}-seed{seeds[-1]}"))), flush=True)


if __name__ == "__main__":
    main()
