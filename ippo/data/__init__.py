"""Tasks and the data module that feeds their prompts to PPO, one batch an iteration."""

from ippo.data.embedded import EmbeddedOptions, embedded_task
from ippo.data.file import ColumnOptions
from ippo.data.splits import SplitOptions
from ippo.data.task import Check, Columns, Row, Rows, Task, columns
from ippo.data.verifier import VerifierOptions

__all__ = [
    "Check",
    "ColumnOptions",
    "Columns",
    "EmbeddedOptions",
    "Row",
    "Rows",
    "SplitOptions",
    "Task",
    "VerifierOptions",
    "columns",
    "embedded_task",
]
