"""The words of a recipe's command line, and what each does."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ippo.errors import UsageError
from ippo.files import StorageError
from ippo.recipes.evaluate import evaluate
from ippo.recipes.export import export
from ippo.recipes.recipe import Recipe
from ippo.recipes.train import train


def command(recipe: Recipe, arguments: Sequence[str] | None = None) -> int:
    """Train; with the word ``evaluate`` first only judge, with ``export`` write the trained policy out.

    Args:
        recipe: whose command line it is.
        arguments: its words; the program's own when None.

    Returns:
        The exit code: 0, 2 for a wrong argument, or 1 where a file could not be written.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    do = {"evaluate": evaluate, "export": export}.get(words[0] if words else "")
    try:
        if do is not None:
            do(recipe, words[1:])
        else:
            train(recipe, words)
    except (UsageError, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0
