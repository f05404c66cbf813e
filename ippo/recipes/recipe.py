"""What tells one recipe from another."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """A command line for a family of tasks.

    Args:
        name: of the module, and of its run directories.
        description: what ``--help`` says.
        tasks: their names; the first holds unless another is given.
        policy: the one that holds unless another is given.
    """

    name: str
    description: str
    tasks: tuple[str, ...]
    policy: str
