"""Which backend a module is scored by: the first that can, decided once."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ippo.errors import UsageError
from ippo.influence.backends import ghost_scores, jvp_scores
from ippo.influence.direction import Losses
from ippo.influence.hook_check import PROBED_EVERY, MismatchError
from ippo.influence.hooks import UncoveredLayerError
from ippo.influence.in_step import run_in_step
from ippo.influence.loop import loop_scores
from ippo.influence.parameters import spread, trainable

OneBatch = Callable[[nn.Module, Losses, Any, Mapping[str, Tensor]], Tensor]
"""Scores of one micro-batch, [n]."""

_IN_ORDER: dict[str, OneBatch] = {"ghost": ghost_scores, "jvp": jvp_scores, "loop": loop_scores}

COSTS = {
    "ghost": f"one forward and one backward; for one batch in {PROBED_EVERY} one backward more, which checks its rows",
    "jvp": "one pass in forward mode, about as long as a forward and a backward",
    "loop": "one backward for each row: a batch of 32 takes 32",
    "fd": "two forwards",
}


class Choice:
    """Hooks, forward mode where they refuse, and the loop where neither works: what one refuses it is not asked again,
    until the module or its trainable parameters are others.

    Attributes:
        backend: in use.
        why: in one sentence.
    """

    def __init__(self) -> None:
        self._decided_for: tuple[int, frozenset[str]] | None = None
        self._reset()

    def scores(
        self, module: nn.Module, losses: Losses, batches: Iterable[Any], along: Mapping[str, Tensor]
    ) -> list[Tensor]:
        """[n] for each batch. When a probe finds that hooks do not see the episodes, the batches of this call that no
        probe has passed since are scored anew. Where ranks hold parts of the module there are hooks alone."""
        if spread(module):
            self.backend, self.why = "ghost", "hooks alone score a module of which each rank holds parts"
            return run_in_step(module, batches, lambda batch: ghost_scores(module, losses, batch, along))
        key = id(module), frozenset(trainable(module))
        if key != self._decided_for:
            self._decided_for = key
            self._reset()
        found: list[Tensor] = []
        unproven: deque[tuple[int, Any]] = deque(maxlen=PROBED_EVERY)
        for place, batch in enumerate(batches):
            before = self.backend
            found.append(self._one(module, losses, batch, along))
            if before == self.backend == "ghost":
                unproven.append((place, batch))
            elif before == "ghost":
                for earlier, again in unproven:
                    found[earlier] = self._one(module, losses, again, along)
        return found

    def _reset(self) -> None:
        self.backend, self.why = "ghost", "every trainable parameter acts inside a layer whose rows are the episodes"

    def _one(self, module: nn.Module, losses: Losses, batch: Any, along: Mapping[str, Tensor]) -> Tensor:
        while True:
            try:
                return _IN_ORDER[self.backend](module, losses, batch, along)
            except torch.OutOfMemoryError:
                raise
            except (UncoveredLayerError, MismatchError) as refusal:
                self._fall_back(refusal)
            except UsageError:  # about the losses
                raise
            except Exception as failure:
                if self.backend == "loop":
                    raise
                self._fall_back(failure)

    def _fall_back(self, error: Exception) -> None:
        if self.backend == "ghost":
            self.backend, self.why = "jvp", _why_no_hooks(error)
        else:
            self.backend, self.why = "loop", f"{self.why}, and {why_no_forward_mode(error)}"


def why_no_forward_mode(error: Exception) -> str:
    """In one clause."""
    if isinstance(error, MismatchError):
        return error.reason
    operation = re.match(r"Trying to use forward AD with (\S+)", str(error))
    return f"torch has no forward derivative of {operation[1]}" if operation else f"forward mode fails ({_told(error)})"


def _why_no_hooks(error: Exception) -> str:
    if isinstance(error, UncoveredLayerError):
        return f"hooks cannot cover {error.layer!r}, because {error.reason}"
    return f"hooks fail ({_told(error)})"


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
