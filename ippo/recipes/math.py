"""``python -m ippo.recipes.math``: warm start, influence-filtered PPO, and a table of what it brought."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ippo.recipes.command import command
from ippo.recipes.recipe import Recipe

RECIPE = Recipe(
    "math", __doc__ or "", tasks=("embedded", "gsm_symbolic", "gsm8k", "math", "collegemath", "file"), policy="tiny"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the recipe; returns the exit code: 0, or 2 for a wrong argument."""
    return command(RECIPE, arguments)


if __name__ == "__main__":
    sys.exit(main())
