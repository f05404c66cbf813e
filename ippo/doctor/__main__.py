"""``python -m ippo.doctor``: examine a policy and a task before training them; exit code 1 when something is wrong."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from rich.console import Console

from ippo.doctor.examination import examine
from ippo.doctor.finding import healthy
from ippo.doctor.options import DoctorOptions
from ippo.doctor.patient import admit
from ippo.doctor.table import print_table, verdict
from ippo.errors import UsageError
from ippo.recipes.parser import build_parser, parse
from ippo.recipes.screen import quiet

console = Console(width=None if sys.stdout.isatty() else 160)


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine; returns the exit code: 0 when healthy, 1 when something is wrong, 2 for a wrong argument."""
    parser = build_parser("python -m ippo.doctor", __doc__ or "", preset="embedded.yaml")
    parser.add_class_arguments(DoctorOptions, "doctor")
    start = time.perf_counter()
    try:
        _, options = parse(parser, arguments)
        quiet()
        patient = admit(options, options.doctor, console.print)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    findings = examine(patient, options.doctor.compared, options.trainer.max_epochs or 1)
    print_table(findings, console)
    seconds = time.perf_counter() - start
    console.print(f"{verdict(findings)} Looked at {len(patient.episodes)} episodes in {seconds:.0f} s.")
    return 0 if healthy(findings) else 1


if __name__ == "__main__":
    sys.exit(main())
