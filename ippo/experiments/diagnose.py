"""What did the scores see? Good episodes against bad ones, what was kept, which tokens carry the blame, where to stop.

    python -m ippo.experiments.diagnose runs/compare/ippo_uniform-seed*

Reads the files that runs leave in their directories; nothing is run. For the tokens, train with
``--filter.token_scores true``; to see the scores of a run that they do not steer, with ``--filter.dry_run true``.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from ippo.errors import UsageError
from ippo.experiments.diagnosis import page
from ippo.experiments.diagnosis.records import Run
from ippo.files import StorageError, whole

console = Console()
_PROGRAM = "python -m ippo.experiments.diagnose"


def main(arguments: Sequence[str] | None = None, program: str = _PROGRAM) -> int:
    """Write ``diagnosis.md`` and ``auc.png``, and show the page.

    Returns:
        The exit code: 0, 2 for a wrong argument, or 1 where a file could not be written.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    own = _parser(program).parse_args(arguments)
    try:
        runs = [Run(path) for path in own.runs]
        text = page.report(runs, shlex.join([*program.split(), *arguments]))
        own.out.mkdir(parents=True, exist_ok=True)
        page.plot(runs, own.out / "auc.png")
        with whole(own.out / "diagnosis.md") as unfinished:
            unfinished.write_text(text)
    except (UsageError, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    console.print(Markdown(text.replace(page.PICTURE, f"(`{own.out / 'auc.png'}` shows them over time.)")))
    console.print(f"Report: {own.out / 'diagnosis.md'}")
    return 0


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", type=Path, nargs="+", help="directories of finished runs; of one arm, to be averaged")
    parser.add_argument("--out", type=Path, default=Path("runs/diagnosis"), help="where the report goes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
