"""How thorough the examination is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ippo.errors import require


@dataclass(frozen=True)
class DoctorOptions:
    """What the doctor may spend.

    Args:
        episodes: responses that are sampled and looked at, rounded up to whole prompts.
        compared: episodes that are scored one by one, by every backend, and in a second precision.
        warm_start_steps: steps of warm start where the run's own is not in the cache; null makes 300 for a policy of up
            to ten million parameters and examines a larger one as it is.
    """

    episodes: int = 64
    compared: int = 16
    warm_start_steps: Optional[int] = None  # noqa: UP045 - jsonargparse reads it at run time

    def __post_init__(self) -> None:
        require(self.compared >= 2, "doctor.compared", self.compared, "use at least 2: one score has no neighbour")
        remedy = f"use at least doctor.compared, which is {self.compared}"
        require(self.episodes >= self.compared, "doctor.episodes", self.episodes, remedy)
        steps = self.warm_start_steps
        require(steps is None or steps >= 0, "doctor.warm_start_steps", steps, "use 0 (none) or more, or null")
