"""The arms of a comparison: files of options, one for each way to train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ippo.errors import UsageError

FOLDER = Path(__file__).parents[1] / "arms"


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Args:
        name: of the file.
        path: options of the recipe, as YAML; its first line is a comment that says what the arm is.
    """

    name: str
    path: Path

    @property
    def label(self) -> str:
        """What reports call it.

        Example:
            >>> find("ppo").label
            'plain PPO'
        """
        first = self.path.read_text().partition("\n")[0]
        return first.lstrip("# ") if first.startswith("#") else self.name


def known() -> list[str]:
    """The arms that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find(name: str) -> Arm:
    """An arm by its name, or by the path of a file of one's own.

    Raises:
        UsageError: if there is none.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise UsageError("arms", name, f"use {', '.join(known())}, or the path of a .yaml file")
    return Arm(path.stem, path.resolve())
