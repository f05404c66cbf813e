"""What a linear probe of the policy's hidden states tells of gamed answers that single scores do not.

    python benchmarks/probe.py --seeds 310

Trains through each hole, by plain PPO (scored, nothing dropped) and with the default filter, and asks after each
rollout what :class:`ippo.influence.PositiveProbe` would know of the rewarded answers: it sees scores and states, never
who is gamed. Runs that are there are not run again. Writes the tables to ``--report``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torchmetrics.functional.classification import binary_auroc

from ippo.callbacks.influence.scored import Scored
from ippo.experiments.comparison.arms import find
from ippo.experiments.comparison.page import table
from ippo.functional import fit_probe, keep_where_alike_agree, left_out_chances, log_loss, standardised
from ippo.influence import PositiveProbe
from ippo.models.hidden import answer_states

HOLES = ("short", "long", "round", "large", "phrase", "none")
ARMS = {"scores_default": "plain PPO", "ippo_last_block": "default filter"}
OPTIONS = ("--trainer.max_epochs", "24", "--trainer.limit_val_batches", "0", "--evaluation.samples", "1")
FIGURES = ("auc_score", "auc_probe", "gamed_by_sign", "gamed_by_probe", "right_by_sign", "right_by_probe", "gain")


class Watch(L.Callback):
    """Writes down what a probe would know, one line an iteration.

    Args:
        path: of the file.
    """

    def __init__(self, path: str) -> None:
        self.path, self.rule = Path(path), PositiveProbe()
        self.states, self.signs = torch.empty(0), torch.empty(0, dtype=torch.bool)

    def on_scored(self, trainer: L.Trainer, module: Any, scored: Scored) -> None:
        episodes, scores = scored.rows, scored.scores
        rewarded = episodes.rewards > 0.5
        told = rewarded & (scores != 0)
        states = answer_states(module.scored_module, episodes, 64)
        self.states = torch.cat([self.states, states[told]]) if len(self.states) else states[told]
        self.signs = torch.cat([self.signs, scores[told] > 0])
        rows, penalty = standardised(self.states), self.rule.penalty
        weights = fit_probe(rows, self.signs, penalty)
        chances = left_out_chances(rows, self.signs, weights, penalty)
        base = torch.full_like(chances, float(self.signs.double().mean()))
        everywhere = torch.full((len(scores),), 0.5, dtype=torch.float64)
        everywhere[told] = chances[-int(told.sum()) :]
        by_sign, by_probe = scores > 0, keep_where_alike_agree(scores, rewarded, everywhere, self.rule.share)
        right = torch.tensor(episodes.extras["correct"], dtype=torch.bool)
        gamed = rewarded & ~right
        several = min(int((gamed & told).sum()), int((right & told).sum())) >= 2
        found = {
            "gamed": int(gamed.sum()),
            "rewarded": int(rewarded.sum()),
            "auc_score": float(binary_auroc(scores[told].sigmoid(), right[told].long())) if several else None,
            "auc_probe": float(binary_auroc(everywhere[told], right[told].long())) if several else None,
            "gamed_by_sign": share(by_sign, gamed),
            "gamed_by_probe": share(by_probe, gamed),
            "right_by_sign": share(by_sign, rewarded & right),
            "right_by_probe": share(by_probe, rewarded & right),
            "gain": log_loss(base, self.signs) - log_loss(chances, self.signs),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(found) + "\n")


def share(kept: torch.Tensor, among: torch.Tensor) -> float | None:
    return float(kept[among].float().mean()) if bool(among.any()) else None


def run(hole: str, arm: str, seed: int, out: Path) -> list[dict[str, Any]]:
    """The lines of one run; it is run if they are not there."""
    folder = out / hole / f"{arm}-seed{seed}"
    lines = folder / "probe.jsonl"
    if not (folder / "summary.json").exists():
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
        folder.mkdir(parents=True)
        watch = {"class_path": "probe.Watch", "init_args": {"path": str(lines.resolve())}}
        command = [sys.executable, "-m", "ippo.recipes.math", "--config", str(find(arm).path), *OPTIONS]
        command += ["--embedded.verifier_hole", hole, "--seed_everything", str(seed)]
        command += ["--trainer.callbacks+=" + json.dumps(watch), "--trainer.default_root_dir", str(folder)]
        places = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": places}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in lines.read_text().splitlines()]


def mean(lines: list[dict[str, Any]], name: str) -> str:
    values = [line[name] for line in lines if line[name] is not None]
    return f"{np.mean(values):.2f}" if values else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[310])
    parser.add_argument("--holes", nargs="+", choices=HOLES, default=list(HOLES))
    parser.add_argument("--out", type=Path, default=Path("runs/probe"))
    parser.add_argument("--report", type=Path, default=Path("runs/probe/report.md"))
    options = parser.parse_args()
    rows = []
    for hole in options.holes:
        for arm, label in ARMS.items():
            lines = [line for seed in options.seeds for line in run(hole, arm, seed, options.out)]
            gamed = sum(line["gamed"] for line in lines) / max(1, sum(line["rewarded"] for line in lines))
            rows.append([hole, label, f"{gamed:.2f}", *(mean(lines, name) for name in FIGURES)])
            print(*rows[-1], flush=True)
    heads = ["hole", "trained by", "gamed of the rewarded", "AUC: score", "probe", "gamed that stay: sign", "probe"]
    heads += ["right that stay: sign", "probe", "gain in nats"]
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text("\n".join(table(heads, rows)) + "\n")


if __name__ == "__main__":
    main()
