"""Names on the command line that stand for a class: ``--filter last_block`` takes ``--filter.keep`` as a class does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser

from ippo.recipes.engines import ENGINES
from ippo.recipes.filters import FILTERS

_NAMED: Mapping[str, Mapping[str, dict[str, Any]]] = {"filter": FILTERS, "engine": ENGINES}


def spelt_out(parser: ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """A command line in which a name whose options are changed is replaced by what it stands for."""
    words, changes = list(arguments), {}
    for option in _NAMED:
        words, changes[option] = apart(words, option)
    if not any(changes.values()):
        return words
    # The first parse is not the last: what it would print lacks the changes.
    chosen = parser.parse_args([word for word in words if word.partition("=")[0] != "--print_config"])
    for option, changed in changes.items():
        name, known = chosen[option], _NAMED[option]
        if changed and isinstance(name, str) and name in known:
            words.append(f"--{option}={json.dumps(known[name])}")
        words += changed
    return words


def apart(arguments: Sequence[str], option: str) -> tuple[list[str], list[str]]:
    """A command line without the words ``--OPTION.…``, and those words.

    Example:
        >>> apart(["--filter.dry_run", "true", "--resume", "--filter.patience=3"], "filter")
        (['--resume'], ['--filter.dry_run=true', '--filter.patience=3'])
    """
    others, found = [], []
    words = iter(arguments)
    for word in words:
        if word.startswith(f"--{option}.") and not word.startswith(f"--{option}.help"):
            found.append(word if "=" in word else f"{word}={next(words, '')}")
        else:
            others.append(word)
    return others, found
