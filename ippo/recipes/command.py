"""The words of a recipe's command line, and what each does."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ippo.errors import UsageError
from ippo.files import StorageError
from ippo.recipes.evaluate import evaluate
from ippo.recipes.export import export
from ippo.recipes.help import asked, short
from ippo.recipes.parser import parser_of
from ippo.recipes.recipe import Recipe
from ippo.recipes.train import train

_DO = {"train": train, "evaluate": evaluate, "export": export}


def command(recipe: Recipe, arguments: Sequence[str] | None = None) -> int:
    """Train; with the word ``evaluate`` first only judge, with ``export`` write the trained policy out.

    Args:
        recipe: whose command line it is.
        arguments: its words; the program's own when None.

    Returns:
        The exit code: 0, 2 for a wrong argument, 1 where a file could not be written, or 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    word = words.pop(0) if words and words[0] in _DO else "train"
    try:
        if help_of := asked(words):
            print(short(recipe, word) if help_of == "short" else parser_of(recipe, word, []).format_help())
        else:
            _DO[word](recipe, words)
    except (UsageError, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except (KeyboardInterrupt, SystemExit) as stop:
        if not isinstance(stop, KeyboardInterrupt) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        print("interrupted", file=sys.stderr)  # outside of the iterations, where Lightning ends by an exit of its own
        return 130
    return 0
