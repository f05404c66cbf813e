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
        program: what a shell calls it; ``python -m ippo.recipes.NAME`` when empty.
    """

    name: str
    description: str
    tasks: tuple[str, ...]
    policy: str
    program: str = ""

    def command(self, word: str) -> str:
        """The beginning of a command line that trains, evaluates or exports.

        Example:
            >>> Recipe("math", "", ("embedded",), "tiny").command("train")
            'python -m ippo.recipes.math'
            >>> Recipe("math", "", ("embedded",), "tiny", "ippo").command("export")
            'ippo export'
        """
        if self.program:
            return f"{self.program} {word}"
        module = f"python -m ippo.recipes.{self.name}"
        return module if word == "train" else f"{module} {word}"
