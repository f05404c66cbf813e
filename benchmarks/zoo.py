"""Every causal language model type of transformers, tiny, through one iteration of I-PPO and out again.

    python benchmarks/zoo.py                          # writes docs/results/zoo.md
    python benchmarks/zoo.py --types llama opt rwkv   # a few of them, printed only
    python benchmarks/zoo.py --results zoo.jsonl      # goes on where a run that was cut short has stopped

Types run in processes of their own, a few in each, so that one that crashes or hangs costs itself alone. What is tried
and held against what: :mod:`zoo_checks`. One CPU core, a few minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from zoo_checks import LOGPROBS, SCORES, Examined, examine
from zoo_models import TYPES

ROOT = Path(__file__).resolve().parents[1]
A_PROCESS = 24  # types
PATIENCE = 900  # seconds for one process

WHAT = """\
Each type is built tiny, with random weights, and goes through one iteration of I-PPO: prompts of several lengths are
sampled from, old log-probabilities taken, the default filter's scores computed (last block, uniform weights), one step
made on what is kept, and the policy is saved and loaded again. Beside it plain torch computes the same, one row at a
time and without padding: log-probabilities, one gradient a row for the scores and for the direction, the gradient of
the step. Every token that greedy sampling takes must be the likeliest."""

OUTCOMES = {
    "works": "every number is that of plain torch",
    "refused": "by name and with the remedy, before the first rollout",
    "wrong": "a number is another than that of plain torch",
    "error": "it ends in another error than a refusal",
    "not built": "transformers builds no tiny one at the sizes given here, or it needs a package or an image",
}


def run(types: Sequence[str], results: Path) -> None:
    """Examine what has no line in the file of results yet."""
    while missing := [kind for kind in types if kind not in {one.kind for one in read(results)}]:
        command = [sys.executable, __file__, "--results", str(results), "--worker", *missing[:A_PROCESS]]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
        try:
            subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, timeout=PATIENCE, check=False)
            how = "its process ended"
        except subprocess.TimeoutExpired:
            how = f"it hung, or the types before it in its process took {PATIENCE} s"
        done = {one.kind for one in read(results)}
        left = [kind for kind in missing[:A_PROCESS] if kind not in done]
        if left:  # the first of them was at work
            write(results, Examined(left[0], "error", how))


def read(results: Path) -> list[Examined]:
    """What is in the file of results."""
    return [Examined(**json.loads(line)) for line in results.read_text().splitlines()] if results.exists() else []


def write(results: Path, found: Examined) -> None:
    """Add a line to the file of results."""
    with results.open("a") as file:
        file.write(json.dumps(asdict(found)) + "\n")


def page(found: Sequence[Examined]) -> str:
    """docs/results/zoo.md"""
    count = Counter(one.outcome for one in found)
    lines = [
        "# Every causal language model type of transformers",
        f"`python benchmarks/zoo.py` · transformers {transformers.__version__}, torch {torch.__version__}, "
        f"{platform.processor() or platform.machine()}, one core, float32, seed 0",
        WHAT,
        f"Log-probabilities may differ by {LOGPROBS:g} nats; scores, gradients and logits by {SCORES:g} of "
        "the largest.",
        table(("outcome", "types", ""), [(name, str(count[name]), what) for name, what in OUTCOMES.items()]),
        "## Works",
        "*Logits*, where they are many: in `parts`, a few tokens at a time, or the `whole` of a micro-batch at once. "
        "*Scores*: how the default filter came by them.",
        table(
            ("type", "logits", "scores", "log-probabilities", "scores off by", "gradient off by"),
            [
                (one.kind, one.parts, one.route.split(":")[0], *(f"{error:.0e}" for error in figures(one)))
                for one in found
                if one.outcome == "works"
            ],
        ),
    ]
    for outcome in ("refused", "wrong", "error", "not built"):
        rows = [(one.kind, one.why.replace("|", "\\|")) for one in found if one.outcome == outcome]
        if rows:
            lines += [f"## {outcome.capitalize()}", table(("type", "why"), rows)]
    if missing := [kind for kind in TYPES if kind not in {one.kind for one in found}]:
        lines += ["## Not run", f"The run was cut short before {', '.join(missing)}."]
    return "\n\n".join(lines) + "\n"


def figures(one: Examined) -> tuple[float, float, float]:
    """What the table shows: of log-probabilities, scores and gradients."""
    errors = one.errors or {}
    return (
        max(errors["old log-probabilities"], errors["in parts"]),
        errors["scores"],
        errors["gradient of the step"],
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="*", default=[], help="examine these alone, and print")
    parser.add_argument("--results", type=Path, help="file of results, a line a type, which is added to")
    parser.add_argument("--page", action="store_true", help="run nothing, write the page of the file of results")
    parser.add_argument("--worker", nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for kind in options.worker:
        write(options.results, examine(kind))
    if options.worker:
        return
    with tempfile.TemporaryDirectory() as folder:
        results = options.results or Path(folder) / "zoo.jsonl"
        run([] if options.page else options.types or TYPES, results)
        order = {kind: place for place, kind in enumerate(sorted(TYPES))}
        found = sorted(read(results), key=lambda one: order[one.kind])
    if not options.types:
        (ROOT / "docs" / "results" / "zoo.md").write_text(page(found))
    for one in found:
        if options.types or one.outcome in ("wrong", "error"):
            print(one)
    print(dict(Counter(one.outcome for one in found)))


if __name__ == "__main__":
    main()
