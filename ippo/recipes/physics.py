"""``python -m ippo.recipes.physics``: the same on OlympiadBench's physics problems."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ippo.recipes.command import command
from ippo.recipes.recipe import Recipe

RECIPE = Recipe("physics", __doc__ or "", tasks=("olympiadbench", "file"), policy="rho1b")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the recipe; returns the exit code: 0, or 2 for a wrong argument."""
    return command(RECIPE, arguments)


if __name__ == "__main__":
    sys.exit(main())
