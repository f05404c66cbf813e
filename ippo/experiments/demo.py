"""A verifier that can be gamed: what the filter makes of it, and what plain PPO does. Three minutes on two cores.

    python -m ippo.experiments.demo

Two ordinary runs of ``ippo.recipes.math`` from one warm start: the default filter, then plain PPO at the rate that
suits it. Options that are not listed here go to both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ippo.errors import UsageError, require
from ippo.experiments.comparison.arms import find
from ippo.recipes.report import print_scores

console = Console()
_PROGRAM = "python -m ippo.experiments.demo"
_LENGTH = ("--trainer.max_epochs", "24")  # by then plain PPO is ruined


def main(arguments: Sequence[str] | None = None, program: str = _PROGRAM) -> int:
    """Train both, and show them side by side.

    Returns:
        The exit code: 0, 2 for a wrong argument, 130 after Ctrl-C, or that of a run that failed.
    """
    own, rest = _parser(program).parse_known_args(sys.argv[1:] if arguments is None else arguments)
    try:
        for name in ("resume", "trainer.default_root_dir"):
            given = any(word.split("=")[0] == f"--{name}" for word in rest)
            require(not given, name, "given", "the demo sets it for both of its runs: name its own directory by --out")
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    out = own.out or Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    plain = ["--config", str(find("ppo").path)]  # behind the others, so that it has the last word on filter and rate
    runs = {"I-PPO": [*_LENGTH, *rest], "plain PPO": [*_LENGTH, *rest, *plain]}
    found: dict[str, dict[str, Any]] = {}
    for number, (label, options) in enumerate(runs.items(), start=1):
        console.rule(f"{number} of {len(runs)}: {label}", align="left")
        folder = out / label.lower().replace(" ", "-")
        code = _run([*options, "--trainer.default_root_dir", str(folder)])
        if code:
            return code
        found[label] = json.loads((folder / "summary.json").read_text())
        if found[label]["interrupted"]:
            return 130
    show(found)
    return 0


def show(found: dict[str, dict[str, Any]]) -> None:
    """The table of both, and the sentence that it is about.

    Args:
        found: what ``summary.json`` of each run holds, by its label.
    """
    console.rule("side by side", align="left")
    judged = {"warm start": found["I-PPO"]["sft"], **{label: one["trained"] for label, one in found.items()}}
    print_scores(judged, console)
    for label, one in judged.items():
        if one.get("reward") is not None:
            believed, right = one["reward"], one["em"]
            console.print(f"{label}: the verifier believes {believed:.0%} of its answers; {right:.0%} are right.")


def _run(options: Sequence[str]) -> int:
    """A run of the recipe in a process of its own, so that each may start ranks; its exit code."""
    with subprocess.Popen([sys.executable, "-m", "ippo.recipes.math", *options]) as run:
        while True:
            try:
                return run.wait()
            except KeyboardInterrupt:  # it has reached the run as well, which ends in good order
                continue


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, default=None, help="directory of the two runs; a new one by default")
    return parser


if __name__ == "__main__":
    sys.exit(main())
