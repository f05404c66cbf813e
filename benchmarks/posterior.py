"""What the posterior of a reward is worth beside the sign of a score, on episodes that runs have written down.

    python benchmarks/posterior.py runs/hacking/main/embedded.verifier_hole=round/ippo_last_block-seed30?

For each kind of run (the directory that holds them) a row: the estimated and the true share of wrong answers among the
rewarded, and of these answers the AUC of right against wrong ones and the Brier score, by the score or its sign, by the
mixture as it is, and by the posterior that never falls and doubts; beside them the Brier score of who knows the true
share and no score. Nothing is trained; every fourth iteration counts.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from ippo.experiments.comparison.page import table
from ippo.experiments.diagnosis.records import Run
from ippo.functional import RewardErrors, alignments, estimate_reward_errors, reward_posterior

HEAD = [
    "runs",
    "iterations",
    "not told",
    "wrong of the rewarded",
    "estimated",
    "AUC: score",
    "mixture",
    "posterior",
    "Brier: true share",
    "sign",
    "mixture",
    "posterior",
]
NAN = float("nan")


def looked_at(scores: Tensor, rewarded: Tensor, right: Tensor) -> list[float] | None:
    """Of one buffer the figures of a row; None where the parts of the mixture cannot be told apart.

    Args:
        scores: [n].
        rewarded, right: [n] bool; right is the truth about the answer.
    """
    aligned = alignments(scores, rewarded)
    errors: RewardErrors = estimate_reward_errors(aligned, rewarded)
    if errors.right.agreeing <= errors.wrong.agreeing:
        return None
    truth = right[rewarded]
    mixture = reward_posterior(aligned, rewarded, errors, rising=False, doubt=0.0)[rewarded]
    posterior = reward_posterior(aligned, rewarded, errors)[rewarded]
    sign = (scores[rewarded] > 0).double()
    both = bool(truth.any()) and not bool(truth.all())
    aucs = [_auc(one, truth) if both else NAN for one in (scores[rewarded].double(), mixture, posterior)]
    briers = [float((one - truth.double()).square().mean()) for one in (sign, mixture, posterior)]
    wrong = float((~truth).double().mean())
    return [wrong, errors.rewarded, *aucs, wrong * (1 - wrong), *briers]


def _auc(values: Tensor, truth: Tensor) -> float:
    """Of ranks: what is not between 0 and 1 would be squashed, and lose order."""
    return float(binary_auroc(values.argsort().argsort() / len(values), truth.long()))


def rows(folders: list[Path], every: int) -> list[list[str]]:
    found: dict[str, list[list[float]]] = defaultdict(list)
    missed: dict[str, int] = defaultdict(int)
    for folder in folders:
        episodes = Run(folder).episodes
        kind = folder.parent.name.rpartition("=")[2]
        for iteration in np.unique(episodes["iteration"])[::every]:
            here = (episodes["iteration"] == iteration) & (episodes["score"] != 0)
            columns = (episodes["score"][here], episodes["rewarded"][here], np.asarray(episodes["correct"])[here])
            figures = looked_at(*(torch.tensor(column) for column in columns))
            if figures is None:
                missed[kind] += 1
            else:
                found[kind].append(figures)
    return [
        [kind, str(len(each) + missed[kind]), str(missed[kind]), *map(_cell, np.nanmean(each, axis=0))]
        for kind, each in found.items()
    ]


def _cell(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="directories of runs whose episodes are scored")
    parser.add_argument("--every", type=int, default=4, help="of so many iterations one counts")
    options = parser.parse_args()
    print("\n".join(table(HEAD, rows(options.runs, options.every))))


if __name__ == "__main__":
    main()
