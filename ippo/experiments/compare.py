"""Which way to train is better, and is that more than chance? Arms x seeds of the recipe, with paired intervals.

    python -m ippo.experiments.compare --arms ppo ippo ippo_uniform random --seeds 0 1 --trainer.max_epochs 5

Every cell is an ordinary run of ``ippo.recipes.math``, and options that are not listed here go to all of them. A cell
that is finished is not run again, and one that was interrupted goes on; so does the whole comparison. ``--along``
compares at each of several values of an option.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console

from ippo.errors import UsageError, require
from ippo.experiments.comparison import curves, page, sweep
from ippo.experiments.comparison.arms import Arm, find, known
from ippo.experiments.comparison.cells import Cell, CellError, Summary
from ippo.experiments.comparison.statistics import FIGURES, best
from ippo.files import StorageError
from ippo.recipes.parser import build_parser, parse
from ippo.recipes.presets import preset_files
from ippo.recipes.report import versions

console = Console()
Key = TypeVar("Key")
_PROGRAM = "python -m ippo.experiments.compare"


def main(arguments: Sequence[str] | None = None, program: str = _PROGRAM) -> int:
    """Run what is missing, and write the report.

    Returns:
        The exit code: 0, 2 for a wrong argument, 1 where a run failed or a file could not be written, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        own, rest = _parser(program).parse_known_args(arguments)
        way = compare_along if own.along else compare
        way(own, tuple(rest), shlex.join([*program.split(), *arguments]))
    except (UsageError, StorageError, CellError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def compare(own: argparse.Namespace, options: tuple[str, ...], command: str) -> None:
    """From the options to the report.

    Args:
        own: the comparison's options.
        options: the recipe's, for all arms.
        command: as it was typed.
    """
    _check(own, options, own.out)
    found = compare_at(own, options, own.out, command)
    console.print(page.screen(found))
    console.print(f"Report: {own.out / 'report.md'}")


def compare_along(own: argparse.Namespace, options: tuple[str, ...], command: str) -> None:
    """The same at each value of an option, and a page over them."""
    option, *values = own.along
    remedy = "give an option's name and two values of it or more, each once"
    require(len(set(values)) == len(values) > 1, "along", " ".join(own.along), remedy)
    places = {value: (own.out / sweep.folder(option, value), (*options, f"--{option}", value)) for value in values}
    for out, given in places.values():
        _check(own, given, out)
    comparisons = {}
    for value, (out, given) in places.items():
        console.print(f"{option} {value}")
        comparisons[value] = compare_at(own, given, out, f"{command}, {option} {value}")
    path = sweep.write(option, comparisons, command, own.out)
    console.print(sweep.screen(option, comparisons))
    console.print(f"Report: {path}")


def compare_at(own: argparse.Namespace, options: tuple[str, ...], out: Path, command: str) -> page.Comparison:
    """Run what is missing of one comparison, and write its report into ``out``."""
    arms = {arm.name: arm for arm in map(find, own.arms)}
    rates = tune(own, options, out, arms) if own.learning_rates else {}
    cells = {}
    for name, arm in arms.items():
        rate = best(rates[name]) if rates else None
        cells[name] = [Cell(arm, seed, out, options, rate) for seed in own.seeds]
    runs = run_all(cells, own.jobs, "runs")
    packages = " ".join(f"{name} {version}" for name, version in versions().items())
    hardware = f"{os.cpu_count()} cores, {platform.machine()}, {own.jobs} runs at a time, one thread each · {packages}"
    comparison = page.Comparison(runs, arms, own.seeds, _base(own), command, hardware, rates)
    page.write(comparison, out)
    curves.plot({arms[name].label: of_arm for name, of_arm in runs.items()}, out / "curves.png")
    return comparison


def tune(
    own: argparse.Namespace, options: tuple[str, ...], out: Path, arms: dict[str, Arm]
) -> dict[str, dict[float, float]]:
    """Of each arm, every learning rate with its mean test EM on the tuning seeds."""
    grid = {
        (name, rate): [Cell(arm, seed, out / "tuning", options, rate) for seed in own.tuning_seeds]
        for name, arm in arms.items()
        for rate in own.learning_rates
    }
    found: dict[str, dict[float, float]] = {name: {} for name in arms}
    for (name, rate), runs in run_all(grid, own.jobs, "tuning").items():
        found[name][rate] = float(np.mean([FIGURES["EM"](run) for run in runs]))
    return found


def run_all(cells: dict[Key, list[Cell]], jobs: int, what: str) -> dict[Key, list[Summary]]:
    """Every cell's summary; those that are missing are run, several at a time.

    The first arm's cells come first: each makes its seed's warm start, which the other arms then reuse.

    Raises:
        CellError: if a run fails. Those that are under way end first, and are not lost.
    """
    found = {cell: cell.finished() for row in cells.values() for cell in row}
    missing = [cell for cell, summary in found.items() if summary is None]
    console.print(f"{what}: {len(found) - len(missing)} of {len(found)} are finished.")
    began = time.perf_counter()
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(cell.run): cell for cell in missing}
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                cell = futures[future]
                found[cell] = future.result()
                left = (time.perf_counter() - began) / number * (len(missing) - number)
                em = FIGURES["EM"](found[cell])  # type: ignore[arg-type]
                console.print(f"[{number}/{len(missing)}] {cell.name}: EM {em:.3f}; about {left / 60:.0f} min left")
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return {key: [found[cell] for cell in row] for key, row in cells.items()}  # type: ignore[misc]


def _base(own: argparse.Namespace) -> str:
    return own.base if own.base is not None else find(own.arms[0]).name


def _check(own: argparse.Namespace, options: tuple[str, ...], out: Path) -> None:
    """Refuse what is wrong before the first run.

    Raises:
        UsageError: if an option is out of range, or the recipe does not take what it would be given.
    """
    arms = {arm.name: arm for arm in map(find, own.arms)}
    require(_base(own) in arms, "base", own.base, f"name one of the arms: {', '.join(arms)}")
    require(len(arms) == len(own.arms), "arms", own.arms, "name each of them once")
    require(len(set(own.seeds)) == len(own.seeds), "seeds", own.seeds, "name each of them once")
    require(own.jobs >= 1, "jobs", own.jobs, "use at least 1")
    both = sorted(set(own.seeds) & set(own.tuning_seeds)) if own.learning_rates else []
    require(not both, "tuning_seeds", both, "they must not be among the reported seeds")
    for name in ("seed_everything", "resume", "trainer.default_root_dir"):
        given = any(word.split("=")[0] == f"--{name}" for word in options)
        require(not given, name, "given", "the comparison sets it for each of its runs: leave it out")
    for arm in arms.values():
        words = Cell(arm, 0, out, options).arguments
        parse(build_parser(_PROGRAM, "", preset_files(words, "embedded", "tiny")), words)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    default = ["ppo", "ppo_ptx", "ippo_last_block", "random_within", "ippo"]
    along = "an option of the recipe and its values: compare at each of them, as --along embedded.verifier_error 0 0.25"
    parser.add_argument("--arms", nargs="+", default=default, help=f"{', '.join(known())}, or a .yaml file of options")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--base", default=None, help="the arm that the others are held against; the first by default")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="directory of the runs and the report")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[], help="try these for every arm, first")
    parser.add_argument("--along", nargs="+", default=None, metavar=("OPTION", "VALUE"), help=along)
    parser.add_argument("--tuning_seeds", type=int, nargs="+", default=[1000, 1001], help="seeds of these trials")
    return parser


if __name__ == "__main__":
    sys.exit(main())
