"""Rewards that can be gamed: plain PPO, the filter, and what people do today, on a verifier with a hole.

    python benchmarks/hacking.py --seeds 300 301 302

Every run is a cell of ``ippo.experiments.compare``: run the command again and only what is missing is run, seed by
seed, so that an interrupted one leaves whole pairs. Writes ``docs/results/hacking.md`` and its picture; ``--page``
writes them of what is finished and runs nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ippo.experiments import compare
from ippo.experiments.comparison.arms import find
from ippo.experiments.comparison.cells import Cell, Summary
from ippo.experiments.comparison.page import table
from ippo.experiments.comparison.statistics import interval, signed
from ippo.experiments.diagnosis.records import Run
from ippo.recipes.report import versions

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "hacking.md"
HOLES = ("short", "long", "round", "large", "phrase")
LENGTH = ("--trainer.max_epochs", "24", "--trainer.limit_val_batches", "0", "--evaluation.samples", "4")
PPO, FILTER, PTX, PROBE = "scores_default", "ippo_last_block", "ppo_ptx", "ippo_probe"
GUIDED = {PTX: "PPO, trained on them as well", FILTER: "default filter", PROBE: "filter and probe"}
GOLD: dict[str, tuple[str, tuple[str, ...]]] = {
    "gold-32": ("32", ("--embedded.gold_size", "32")),
    "gold-16": ("16", ("--embedded.gold_size", "16")),
    "gold-narrow": ("256, two steps each", ("--embedded.gold_steps", "2")),
    "gold-words": ("256, in words", ("--embedded.gold_style", "words")),
}
HONEST: dict[str, tuple[str, ...]] = {
    "error-0": ("--embedded.verifier_error", "0"),
    "error-0.1": ("--embedded.verifier_error", "0.1"),
    "error-0.25": ("--embedded.verifier_error", "0.25"),
    "lenient": ("--embedded.verifier_error", "0.25", "--embedded.verifier_errs_on", "wrong"),
    "strict": ("--embedded.verifier_error", "0.25", "--embedded.verifier_errs_on", "right"),
}


@dataclass(frozen=True)
class Part:
    """Arms on one kind of verifier.

    Args:
        folder: of the comparison, below the output.
        arms: by name.
        options: of the recipe.
    """

    folder: str
    arms: tuple[str, ...]
    options: tuple[str, ...]

    def run(self, seeds: Sequence[int], out: Path, jobs: int) -> None:
        """Run what is missing, by the command that anyone could type.

        Raises:
            SystemExit: if a run failed.
        """
        words = ["--arms", *self.arms, "--seeds", *map(str, seeds), "--out", str(out / self.folder)]
        code = compare.main([*words, *self.options, "--jobs", str(jobs)])
        if code:
            sys.exit(code)

    def pairs(self, seeds: Sequence[int], out: Path) -> Pairs:
        """What is finished: the seeds of which every arm is."""
        found: dict[str, dict[int, Summary]] = {arm: {} for arm in self.arms}
        for arm in self.arms:
            for seed in seeds:
                summary = Cell(find(arm), seed, out / self.folder, self.options).finished()
                if summary is not None:
                    found[arm][seed] = summary
        whole = [seed for seed in seeds if all(seed in of_arm for of_arm in found.values())]
        runs = {arm: [of_arm[seed] for seed in whole] for arm, of_arm in found.items()}
        return Pairs(runs, whole, {arm: [out / self.folder / f"{arm}-seed{seed}" for seed in whole] for arm in found})


@dataclass(frozen=True)
class Pairs:
    """Finished runs of several arms, with the same seeds in the same order."""

    runs: dict[str, list[Summary]]
    seeds: list[int]
    folders: dict[str, list[Path]] = field(default_factory=dict)

    def of(self, arm: str, figure: Callable[[Summary], float]) -> list[float]:
        return [figure(run) for run in self.runs[arm]]

    def mean(self, arm: str, figure: Callable[[Summary], float]) -> str:
        return f"{np.mean(self.of(arm, figure)):.3f}"

    def minus(self, arm: str, figure: Callable[[Summary], float], other: str, base: Callable[[Summary], float]) -> str:
        """Mean difference and interval, paired by seed."""
        pairs = zip(self.of(arm, figure), self.of(other, base), strict=True)
        return signed(*interval([first - second for first, second in pairs]))


def trained(name: str) -> Callable[[Summary], float]:
    return lambda run: run["trained"][name] or 0.0


def start(name: str) -> Callable[[Summary], float]:
    return lambda run: run["sft"][name] or 0.0


def last_hacked(run: Summary) -> float:
    """Share of the last iteration's episodes."""
    return run["iterations"][-1]["hacked"]


def parts() -> dict[str, Part]:
    """All that is compared, by folder."""
    holes = [
        Part(f"main/embedded.verifier_hole={hole}", (PPO, FILTER), (*LENGTH, "--embedded.verifier_hole", hole))
        for hole in HOLES
    ]
    gold = [
        Part(folder, tuple(GUIDED), ("--embedded.verifier_hole", "short", *options, *LENGTH))
        for folder, (_, options) in GOLD.items()
    ]
    others = [Part("others", (PTX, "ppo_kl", "random_within"), ("--embedded.verifier_hole", "short", *LENGTH))]
    honest = [Part(f"honest/{name}", (PPO,), (*options, *LENGTH)) for name, options in HONEST.items()]
    return {part.folder: part for part in (*holes, *gold, *others, *honest)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(300, 310)))
    parser.add_argument("--out", type=Path, default=Path("runs/hacking"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--page", action="store_true", help="write the page of what is finished, and run nothing")
    beginnings = "only parts whose folders begin so (main, gold-16, others, honest ...); prints, and writes no page"
    parser.add_argument("--parts", nargs="+", default=[""], help=beginnings)
    options = parser.parse_args()
    chosen = {folder: part for folder, part in parts().items() if folder.startswith(tuple(options.parts))}
    if not options.page:
        for count in range(1, len(options.seeds) + 1):
            for part in chosen.values():
                part.run(options.seeds[:count], options.out, options.jobs)
    found = {folder: part.pairs(options.seeds, options.out) for folder, part in chosen.items()}
    found = {folder: pairs for folder, pairs in found.items() if pairs.seeds}
    text = page(found, f"python benchmarks/hacking.py --seeds {' '.join(map(str, options.seeds))}")
    if options.parts != [""]:
        print(text)
        return
    kept = PAGE.read_text().partition(READ)[2] if PAGE.exists() else ""  # what was written by hand stays
    PAGE.write_text(text + READ + (kept or "\n"))
    plot({hole: found[name] for hole in HOLES if (name := f"main/embedded.verifier_hole={hole}") in found})


INTRODUCTION = (
    "The training verifier passes every right answer, and every wrong one of one kind ([which](../tasks.md), "
    "`--embedded.verifier_hole`); it errs on nothing else. Tests use the truth. *Hacked*: wrong, and of the kind "
    "that passes. *Believes*: the mean reward that this verifier gives to the very answers that EM is of. "
    "*Following*: of the hacked answers of the last six iterations, those that are the result of their last step, as "
    "an ordinary mistake is. Plain PPO runs at its own tuned rate (2e-4), with its episodes scored but none dropped; "
    "the default filter at its own (4e-4). Intervals are 95 %, paired by seed; of fewer than five seeds they are "
    "Student's."
)
HEAD = [
    "hole",
    "policy",
    "EM",
    "verifier believes",
    "greedy EM",
    "unfaithful",
    "hacked",
    "hacked, last rollouts",
    "of them following",
]
SCORES = (
    "Of plain PPO's runs above: the share of the rewarded episodes that score at or below zero, that is, oppose the "
    "gold set, and the AUC of right against hacked ones among the rewarded; means over seeds. Below them plain PPO's "
    "runs on verifiers without a hole: `error-0.25` flips a quarter of the rewards, `lenient` passes a quarter of the "
    "wrong answers, `strict` misses a quarter of the right ones."
)
READ = "\n## What it says\n"


def page(found: dict[str, Pairs], command: str) -> str:
    """The tables."""
    packages = " ".join(f"{name} {version}" for name, version in versions().items())
    holes = {hole: found[name] for hole in HOLES if (name := f"main/embedded.verifier_hole={hole}") in found}
    counts = ", ".join(f"{folder.rpartition('=')[2]} {len(pairs.seeds)}" for folder, pairs in found.items())
    lines = [
        "# When the reward can be gamed",
        "",
        f"`{command}` · 24 iterations, else the recipe's defaults, 4 answers to each of 256 test problems · one thread "
        f"a run, {os.cpu_count()} cores, with other work beside it · {packages}. Whole pairs of seeds: {counts}.",
        "",
        INTRODUCTION,
        "",
        "## Five holes",
        "",
        *table(
            HEAD,
            [row for hole, pairs in holes.items() for row in _policies(hole, pairs)],
        ),
        "",
        *table(
            ["hole", "EM: filter − warm start", "greedy EM: filter − warm start", "EM: PPO − warm start",
             "greedy EM: PPO − warm start", "EM: filter − PPO"],
            [_differences(hole, pairs) for hole, pairs in holes.items()],
        ),
        "",
        "![EM and what the verifier believes](hacking.png)",
        "",
        "## What the scores see",
        "",
        SCORES,
        "",
        *table(
            ["hole", "", *(f"iteration {place}" for place in LOOKS)],
            [row for hole, pairs in holes.items() for row in _seen(hole, pairs, with_auc=True)]
            + [row for name in HONEST if (pairs := found.get(f"honest/{name}")) for row in _seen(name, pairs)],  # type: ignore[misc]
        ),
        "",
    ]  # fmt: skip
    lines += _beside(found)
    lines += _other_gold(found)
    return "\n".join(lines)


LOOKS = (0, 2, 4, 6, 8, 12, 16, 20, 23)


def _policies(hole: str, pairs: Pairs) -> list[list[str]]:
    names = ("em", "reward", "em_greedy", "false_positive", "hacked")
    rows = [[hole, "warm start", *(pairs.mean(PPO, start(name)) for name in names), "", ""]]
    for arm, label in ((PPO, "plain PPO"), (FILTER, "default filter")):
        last = pairs.of(arm, last_hacked)
        each = [pairs.mean(arm, trained(name)) for name in names]
        following = f"{np.mean([follows(folder) for folder in pairs.folders[arm]]):.2f}"
        rows.append(["", label, *each, f"{np.mean(last):.3f} (most {max(last):.3f})", following])
    return rows


def follows(folder: Path, last: int = 6) -> float:
    """Of the hacked answers in the last iterations, the share that is the result of their chain's last step: an
    ordinary mistake rather than a number that was put there."""
    episodes: dict[str, Any] = Run(folder).episodes
    late = episodes["iteration"] > episodes["iteration"].max() - last
    texts = [episodes["response"][place] for place in np.flatnonzero(late & (episodes["chain"] == "hacked"))]
    parts = [text.rpartition("####") for text in texts]
    return float(np.mean([chain.strip().rpartition("=")[2] == answer.strip() for chain, _, answer in parts]))


def _differences(hole: str, pairs: Pairs) -> list[str]:
    found = [hole]
    for arm in (FILTER, PPO):
        found += [pairs.minus(arm, trained(name), arm, start(name)) for name in ("em", "em_greedy")]
    return [*found, pairs.minus(FILTER, trained("em"), PPO, trained("em"))]


def _seen(name: str, pairs: Pairs, with_auc: bool = False) -> list[list[str]]:
    opposed: dict[int, list[float]] = {place: [] for place in LOOKS}
    aucs: dict[int, list[float]] = {place: [] for place in LOOKS}
    for folder in pairs.folders[PPO]:
        run = Run(folder)
        episodes: dict[str, Any] = run.episodes
        for place in LOOKS:
            here = (episodes["iteration"] == place) & episodes["rewarded"]
            opposed[place].append(float((episodes["score"][here] <= 0).mean()))
            if place in (seen := run.aucs["rewarded: right, hacked"]):
                aucs[place].append(seen[place])
    rows = [[name, "oppose", *(f"{np.mean(each):.2f}" for each in opposed.values())]]
    if with_auc:
        rows.append(["", "AUC", *(f"{np.mean(each):.2f}" if each else "–" for each in aucs.values())])
    return rows


def _beside(found: dict[str, Pairs]) -> list[str]:
    """What people do today, on the first hole."""
    if (pairs := found.get("others")) is None:
        return []
    names = ("em", "reward", "em_greedy", "hacked")
    rows = [[find(arm).label, *(pairs.mean(arm, trained(name)) for name in names)] for arm in pairs.runs]
    return [
        "## Other ways, hole `short`",
        "",
        *table(["arm", "EM", "verifier believes", "greedy EM", "hacked"], rows),
        "",
    ]


def _other_gold(found: dict[str, Pairs]) -> list[str]:
    """The filter against training on the gold solutions, where they are few, or not like what is trained."""
    names = ("em", "em_greedy", "hacked")
    rows, differences = [], []
    for folder, (label, _) in GOLD.items():
        if (pairs := found.get(folder)) is None:
            continue
        figures = ("em", "reward", "em_greedy", "hacked")
        rows.append([label, "warm start", *(pairs.mean(PTX, start(name)) for name in figures)])
        for arm, policy in GUIDED.items():
            rows.append(["", policy, *(pairs.mean(arm, trained(name)) for name in figures)])
        for ours, theirs in ((FILTER, PTX), (PROBE, PTX), (PROBE, FILTER)):
            each = [pairs.minus(ours, trained(name), theirs, trained(name)) for name in names]
            differences.append([label, f"{GUIDED[ours]} − {GUIDED[theirs]}", str(len(pairs.seeds)), *each])
    if not rows:
        return []
    return [
        "## Few gold solutions, hole `short`",
        "",
        *table(["solutions", "policy", "EM", "verifier believes", "greedy EM", "hacked"], rows),
        "",
        *table(["solutions", "difference", "seeds", "EM", "greedy EM", "hacked"], differences),
        "",
    ]


def plot(holes: dict[str, Pairs]) -> None:
    """EM and reward of the rollouts, iteration by iteration, the mean over seeds."""
    figure = Figure(figsize=(3 * len(holes), 3.5), layout="constrained")
    axes = figure.subplots(1, len(holes), sharey=True, squeeze=False)[0]
    for axis, (hole, pairs) in zip(axes, holes.items(), strict=True):
        for arm, label, colour in ((PPO, "plain PPO", "tab:red"), (FILTER, "default filter", "tab:blue")):
            for key, what, style in (("em", "EM", "-"), ("reward", "verifier believes", ":")):
                curve = np.mean([[one[key] for one in run["iterations"]] for run in pairs.runs[arm]], axis=0)
                axis.plot(curve, style, color=colour, label=f"{label}: {what}")
        axis.set(title=hole, xlabel="iteration", ylim=(0, 1))
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(PAGE.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
