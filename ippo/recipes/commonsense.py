"""``python -m ippo.recipes.commonsense``: the same on ECQA's multiple-choice questions."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ippo.recipes.command import command
from ippo.recipes.recipe import Recipe

RECIPE = Recipe("commonsense", __doc__ or "", tasks=("ecqa",), policy="rho1b")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the recipe; returns the exit code: 0, or 2 for a wrong argument."""
    return command(RECIPE, arguments)


if __name__ == "__main__":
    sys.exit(main())
