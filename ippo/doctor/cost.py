"""What a run will take: memory and time."""

from __future__ import annotations

from typing import NamedTuple

from ippo.doctor.finding import Finding, grade, report
from ippo.models.memory import GIB


def memory(needed: int, available: int) -> Finding:
    """The run fits: a warning above four fifths of the memory, wrong above all of it.

    Args:
        needed, available: bytes; models that are loaded already count as available.
    """
    found = f"about {needed / GIB:.2g} GiB, of {available / GIB:.2g} GiB"
    remedy = "lower ppo.micro_batch_size or sampling.max_new_tokens, a smaller policy, or a layout that shares the base"
    return report("memory", grade(needed / available, warning=0.8, wrong=1.0), found, remedy)


class Seconds(NamedTuple):
    """What the phases took on the doctor's own episodes."""

    rollout: float
    scoring: float
    update: float  # one pass


def time(spent: Seconds, episodes: int, wanted: int, inner_epochs: int, iterations: int) -> Finding:
    """Seconds an iteration, scaled up from the doctor's episodes; never wrong, only to be known.

    Args:
        spent: seconds on ``episodes`` of them.
        episodes: the doctor's.
        wanted: episodes of an iteration.
        inner_epochs: passes of the update over them, none dropped.
        iterations: of the run.
    """
    factor = wanted / episodes
    phases = {"rollout": spent.rollout, "scoring": spent.scoring, "update": spent.update * inner_epochs}
    each = sum(phases.values()) * factor
    told = ", ".join(f"{name} {seconds * factor:.1f}" for name, seconds in phases.items())
    found = f"{each:.1f} s an iteration ({told}), {iterations * each / 60:.0f} min for {iterations}"
    return Finding("time", "ok", found)
