"""What a filter tells other callbacks of the rows that it has judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ippo.influence import Selection


@dataclass(frozen=True)
class Scored:
    """Comes with the event ``on_scored``, before any row leaves, in a dry run too.

    Args:
        name: of the filter.
        unit: ``"buffer"`` or ``"batch"``.
        rows: what was judged, on this rank: the episodes, whole, or the batch.
        selection: on the rows of all ranks.
        own: where this rank's are among them.
    """

    name: str
    unit: str
    rows: Any
    selection: Selection
    own: slice

    @property
    def scores(self) -> Tensor:
        """[n] of this rank's rows."""
        return self.selection.scores[self.own]
