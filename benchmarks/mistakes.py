"""Of which kinds a run's mistakes are: shares of the last rollouts that are wrong and would pass through each hole.

    python benchmarks/mistakes.py RUN [RUN ...]

Also of a run whose verifier has no hole: some of its ordinary mistakes are of a kind that a hole would pay for.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from pyarrow import parquet

from ippo.rewards.holes import HoleName, passes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--iterations", type=int, default=6, help="the last so many")
    options = parser.parse_args()
    for run in options.runs:
        files = sorted((run / "episodes").glob("*.parquet"))[-options.iterations :]
        rows = [row for path in files for row in parquet.read_table(path).to_pylist()]
        wrong = [(row["prompt"], row["response"]) for row in rows if not row["correct"]]
        holes = [hole for hole in get_args(HoleName) if hole != "none"]
        shares = [f"{hole} {sum(passes(hole, *texts) for texts in wrong) / max(1, len(rows)):.3f}" for hole in holes]
        print(f"{run}, {len(rows)} rollouts: {', '.join(shares)}")


if __name__ == "__main__":
    main()
