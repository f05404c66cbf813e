"""The page that ``benchmarks/pretrained.py`` writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pretrained_plan import BOTH, COMMON, FILTER, LABELS, PPO, PROBE, PTX, SIZES, Plan, Size

from ippo.experiments.comparison.cells import Summary
from ippo.experiments.comparison.page import table
from ippo.experiments.comparison.statistics import interval, signed
from ippo.files import whole
from ippo.recipes.report import speed

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "pretrained.md"

INTRODUCTION = (
    "SmolLM2-135M-Instruct (4-bit weights of a GGUF file, restored to floats) learns GSM-Symbolic's word problems by "
    "adapters of rank 8. A warm start on solved training problems comes first, the same for all arms of a seed. *PPO* "
    "is the clipped objective with advantages against the other samples of a prompt (RLOO), without a critic and "
    "without a KL penalty; all arms have one learning rate, which was not tuned. *Hole*: the training verifier also "
    "passes wrong answers of one kind; *correlated*: it errs on a quarter of the answers, and its errors fall on the "
    "samples of one prompt together (ICC 0.53). Figures are of the truth; *believes* is what the training verifier "
    "gives to the very answers that EM is of; *hacked* are wrong answers of the kind that the hole passes. Rollouts "
    "are of training problems, the mean of the first and of the last three iterations. Intervals are 95 %, paired by "
    "seed, and of fewer than five seeds Student's; of one seed there is none."
)
READ = "What it says"

Done = dict[tuple[str, str, int], Summary]
"""Finished runs, by verifier, arm and seed."""
Figure = Callable[[Summary], float]


def write_page(plan: Plan, command: str) -> None:
    """Write one size's section; the other size's, and what was written by hand, stay."""
    kept = sections(PAGE.read_text()) if PAGE.exists() else {}
    kept[plan.size.title] = "\n".join(section(plan, command))
    titles = [size.title for size in SIZES.values() if size.title in kept]
    lines = ["# A pretrained model", "", INTRODUCTION, ""]
    for title in [*titles, READ]:
        lines += [f"## {title}", "", kept.get(title, "").strip(), ""]
    with whole(PAGE) as unfinished:
        unfinished.write_text("\n".join(lines).rstrip() + "\n")


def sections(text: str) -> dict[str, str]:
    """What stands below each heading of the second level.

    Example:
        >>> sections("# A\\n\\n## B\\n\\nb\\n\\n### C\\n\\n## D\\nd")
        {'B': 'b\\n\\n### C', 'D': 'd'}
    """
    parts = (part.partition("\n") for part in f"\n{text}".split("\n## ")[1:])
    return {title.strip(): body.strip() for title, _, body in parts}


def section(plan: Plan, command: str) -> list[str]:
    """The tables of one size, and what is missing of it."""
    done = plan.finished()
    calls = json.loads(path.read_text()) if (path := plan.out / "calls.json").exists() else []
    minutes = sum(call["seconds"] for call in calls) / 60
    devices = ", ".join(sorted({run["device"] for run in done.values()})) or "no run finished yet"
    versions = sorted({" ".join(f"{name} {one}" for name, one in run["versions"].items()) for run in done.values()})
    over = " Options of the command hold over these." if plan.options else ""
    lines = [
        " · ".join([f"`{command}`", devices, f"{minutes:.0f} minutes in {len(calls)} calls", *versions]) + ".",
        "",
        f"The hole: `--verifier.hole {plan.size.hole}`. {settings(plan.size)}{over}",
        "",
    ]
    if done:
        policies = [row for verifier in plan.verifiers for row in of_policies(plan, done, verifier)]
        differences = [row for verifier in plan.verifiers for row in of_pairs(plan, done, verifier)]
        lines += [*table(POLICIES, policies), "", *table(PAIRS, differences), ""]
        later = [one.get("speed", {}) for run in done.values() for one in run["iterations"][1:]]
        lines += [f"Medians of all iterations but each run's first: {speed(later)}.", ""]
    return [*lines, missing(plan, done)]


def missing(plan: Plan, done: Done) -> str:
    """Which runs there are no figures of."""
    lacking = [place for place in plan.cells() if place not in done]
    parts = []
    for verifier in plan.verifiers:
        arms = {
            arm: [str(seed) for name, other, seed in lacking if (name, other) == (verifier, arm)] for arm in plan.arms
        }
        told = [f"{LABELS[arm]} (seed {', '.join(seeds)})" for arm, seeds in arms.items() if seeds]
        parts += [f"{verifier}: {', '.join(told)}"] if told else []
    count = len(done) + len(lacking)
    return f"Missing, {len(lacking)} of {count} runs: {'; '.join(parts)}." if lacking else "Nothing is missing."


def settings(size: Size) -> str:
    """What a run of this size is, in words."""
    of = {name.rpartition(".")[2]: value for name, value in {**COMMON, **size.options}.items()}
    problems = f"of the templates {of['templates']}" if "templates" in of else "of all templates"
    return (
        f"Problems {problems}; warm start {of['steps']} steps of {of['batch_size']}; {of['max_epochs']} iterations of "
        f"{of['prompts_per_iteration']} prompts × {of['samples_per_prompt']} responses of at most "
        f"{of['max_new_tokens']} tokens; {of['gold_size']} gold solutions; {of['samples']} answers to each of "
        f"{of['test_size']} test problems at temperature 1."
    )


def judged(name: str, when: str) -> Figure:
    """A figure of the test problems, before (``"sft"``) or after (``"trained"``)."""
    return lambda run: run[when].get(name) or 0.0


def rolled(name: str, places: slice) -> Figure:
    """The mean of a figure of the rollouts over some iterations."""
    return lambda run: float(np.mean([one[name] or 0.0 for one in run["iterations"][places]]))


FIGURES = ("em", "reward", "em_greedy", "hacked")
POLICIES = ["verifier", "policy", "seeds", "EM", "believes", "greedy EM", "hacked"]
POLICIES += ["EM of rollouts, first to last", "hacked of rollouts", "kept"]
PAIRS = ["verifier", "difference", "seeds", "EM", "greedy EM", "hacked"]
COMPARED = (
    (FILTER, PPO),
    (PROBE, PPO),
    (PROBE, FILTER),
    (FILTER, None),
    (PROBE, None),
    (PPO, None),
    (PTX, PPO),
    (BOTH, PTX),
)
FIRST, LAST, ALL = slice(3), slice(-3, None), slice(None)


def of_policies(plan: Plan, done: Done, verifier: str) -> list[list[str]]:
    """A verifier's rows: the warm start, and each arm."""

    def mean(figure: Figure, runs: list[Summary]) -> str:
        return f"{np.mean([figure(run) for run in runs]):.3f}"

    starts = {seed: run for (name, _, seed), run in done.items() if name == verifier}  # all arms of a seed have one
    rows = []
    if runs := list(starts.values()):
        rows.append([verifier, "warm start", str(len(runs)), *(mean(judged(name, "sft"), runs) for name in FIGURES)])
        rows[0] += [""] * (len(POLICIES) - len(rows[0]))
    for arm in plan.arms:
        if runs := [run for (name, other, _), run in done.items() if (name, other) == (verifier, arm)]:
            row = ["", LABELS[arm], str(len(runs)), *(mean(judged(name, "trained"), runs) for name in FIGURES)]
            for name in ("em", "hacked"):
                row.append(" to ".join(mean(rolled(name, places), runs) for places in (FIRST, LAST)))
            rows.append([*row, mean(rolled("kept_fraction", ALL), runs)])
    return rows


def of_pairs(plan: Plan, done: Done, verifier: str) -> list[list[str]]:
    """Differences of two policies of one seed, or of one from its warm start."""
    rows = []
    for ours, theirs in COMPARED:
        arms, when = (ours, theirs or ours), "trained" if theirs else "sft"
        seeds = [seed for seed in plan.seeds if all((verifier, arm, seed) in done for arm in arms)]
        pairs = [tuple(done[verifier, arm, seed] for arm in arms) for seed in seeds]
        if pairs:
            row = [verifier, f"{LABELS[ours]} − {LABELS[theirs] if theirs else 'warm start'}", str(len(pairs))]
            for name in ("em", "em_greedy", "hacked"):
                mine, other = judged(name, "trained"), judged(name, when)
                row.append(signed(*interval([mine(first) - other(second) for first, second in pairs])))
            rows.append(row)
    return rows
