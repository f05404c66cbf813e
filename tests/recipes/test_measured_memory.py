"""What a run says of its memory: an estimate before it starts, and what was measured once an iteration is done."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from parts import MakeModule, MakeTrainer
from rich.console import Console

from ippo import PromptDataModule
from ippo.callbacks import Throughput
from ippo.models.memory import GIB, MemoryEstimate
from ippo.recipes.memory import MeasuredMemory

ESTIMATE = MemoryEstimate(weights=10**6, training=10**6, update=60 * GIB, scoring=30 * GIB, rollout=15 * GIB)


@pytest.mark.parametrize("free", [100 * GIB, 10**6])
def test_after_the_first_iteration_the_estimate_is_held_against_what_was_measured(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, free: int
) -> None:
    screen = io.StringIO()
    memory, speed = MeasuredMemory(Console(file=screen, width=400)), Throughput()
    memory.estimated = (ESTIMATE, free)
    make_trainer(speed, memory, max_epochs=3).fit(make_module(), data)
    said = screen.getvalue().splitlines()
    assert said[0].startswith("Memory by the end of the first iteration: about ")
    assert said[0].endswith(", where 60 was estimated.")
    measured = float(said[0].split("about ")[1].split(" GiB")[0])
    assert measured == pytest.approx(speed.last["time/memory"], rel=0.2)
    assert len(said) == (1 if free > 50 * GIB else 2)
    assert all(line.startswith("Only 0 GiB are left for longer episodes; to be safe, reduce ppo.") for line in said[1:])


def test_nothing_is_said_of_small_runs(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
) -> None:
    screen = io.StringIO()
    make_trainer(MeasuredMemory(Console(file=screen))).fit(make_module(), data)
    assert screen.getvalue() == ""


def test_what_was_counted_stays_and_the_passes_are_scaled() -> None:
    found = replace(ESTIMATE, weights=GIB, training=3 * GIB).as_measured(24 * GIB)
    assert (found.weights, found.training) == (GIB, 3 * GIB)
    assert (found.update, found.scoring, found.rollout) == (20 * GIB, 10 * GIB, 5 * GIB)
    assert found.total == 24 * GIB
