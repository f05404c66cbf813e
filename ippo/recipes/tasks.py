"""The tasks that have a name on the command line."""

from __future__ import annotations

from ippo.data import EmbeddedOptions, Task, embedded_task
from ippo.errors import require


def load_task(name: str, embedded: EmbeddedOptions) -> Task:
    """The task called ``name``.

    Raises:
        UsageError: if there is none.
    """
    require(name == "embedded", "task", name, "use embedded")
    return embedded_task(embedded)
