"""``python -m ippo.doctor``: examine a policy and a task before training them; exit code 1 when something is wrong."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import torch
from rich.console import Console

from ippo.doctor.examination import broken_down, examine
from ippo.doctor.examined import let_write
from ippo.doctor.finding import healthy
from ippo.doctor.loading import load_examined
from ippo.doctor.options import DoctorOptions
from ippo.doctor.table import print_table, verdict
from ippo.errors import UsageError
from ippo.recipes.assembly import is_mixed
from ippo.recipes.filters import build_filter
from ippo.recipes.help import asked, name_each
from ippo.recipes.parser import build_parser, parse
from ippo.recipes.presets import preset_files
from ippo.recipes.screen import quiet

_HELP = """usage: {program} [--OPTION VALUE ...]

Examine a policy and a task before training them. Exit code 1 when something is wrong.

examples:
  # the embedded task
  {program}
  # with the options of the run that is meant
  {program} --task gsm8k --policy Qwen/Qwen2.5-0.5B

options: those of the run, and
  --doctor.episodes             responses that are sampled and looked at
  --doctor.compared             episodes that are scored in every way
  --doctor.warm_start_steps     where the run's own warm start is not yet made

--help all lists every option."""
console = Console(width=None if sys.stdout.isatty() else 160)


_PROGRAM = "python -m ippo.doctor"


def main(arguments: Sequence[str] | None = None, program: str = _PROGRAM) -> int:
    """Examine; returns the exit code: 0 when healthy, 1 when something is wrong, 2 for a wrong argument."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if asked(arguments) == "short":
        print(_HELP.format(program=program))
        return 0
    start = time.perf_counter()
    try:
        parser = build_parser(program, __doc__ or "", preset_files(arguments, "embedded", "tiny"))
        parser.add_class_arguments(DoctorOptions, "doctor")
        name_each(parser, "doctor", DoctorOptions)
        if asked(arguments):
            print(parser.format_help())
            return 0
        _, options = parse(parser, arguments)
        quiet()
        task, module, needed = load_examined(options, console.print)
        influence_filter = build_filter(options.filter)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    count = 0
    try:
        prompts, seed = options.data.prompts_per_iteration, options.seed_everything
        parameters = influence_filter.scorer.parameters if influence_filter is not None else None
        mixed = is_mixed(options)
        with torch.autocast(module.device.type, torch.bfloat16, mixed, cache_enabled=False):  # as Lightning does
            examined = let_write(task, module, prompts, options.doctor.episodes, seed, parameters, mixed)
            count = len(examined.episodes)
            findings = examine(examined, options.doctor.compared, options.trainer.max_epochs or 1, needed)
    except Exception as error:  # what breaks here would break the run
        findings = [broken_down("rollout", error)]
    print_table(findings, console)
    seconds = time.perf_counter() - start
    console.print(f"{verdict(findings)} Looked at {count} episodes in {seconds:.0f} s.")
    return 0 if healthy(findings) else 1


if __name__ == "__main__":
    sys.exit(main())
