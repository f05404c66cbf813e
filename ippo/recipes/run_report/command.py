"""``ippo report RUN``: the report of a run that is there, also of one that is still going on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ippo.errors import UsageError
from ippo.files import StorageError
from ippo.recipes.run_report.page import write_report


def main(arguments: Sequence[str], program: str = "ippo report") -> int:
    """Write ``report.html`` into each directory.

    Returns:
        The exit code: 0, 2 for a wrong argument, or 1 where a file could not be written.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description="Write report.html into the directory of a run: verdict, curves, what the filter kept, episodes "
        "and answers. One file that needs no network. A run writes it at its end by itself.",
        epilog=f"{program} runs/mine",
        allow_abbrev=False,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="directory of a run, finished or not")
    for run in parser.parse_args(list(arguments)).runs:
        try:
            print(f"Report: {write_report(run)}")
        except (UsageError, StorageError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2 if isinstance(error, UsageError) else 1
    return 0
