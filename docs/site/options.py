"""The page of options, read off the parser of ``ippo train``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import ActionYesNo

from ippo.recipes.parser import build_parser

HEAD = """# Options

Every option of `ippo train` and of `python -m ippo.recipes.NAME`, read off its parser. `evaluate` and `export` take
those that concern them. A file of options (`--config mine.yaml`) has the same names, nested:
`ppo: {learning_rate: 1e-5}`.

The defaults are those of the code. Tasks and policies bring [their own](tasks.md#files-of-options), the embedded task
too; `ippo train --task … --policy … --print_config` prints what a run would take. [Recipes](recipes.md) has examples.
`--filter` takes the [options of the filter][ippo.callbacks.influence.options.FilterOptions], as
`--filter.min_survival`.
"""
WORDS = {bool: "true or false", str: "text", int: "whole number", float: "number", type(None): "null"}


def options_page() -> str:
    """Markdown: a heading for each group, and for each option its type, its default, and its text."""
    lines, told = [HEAD], ""
    for group in build_parser("ippo train", "", [])._action_groups:
        actions = [action for action in group._group_actions if is_option(action)]
        if not actions:
            continue
        name = "" if actions[0].dest == "config" else actions[0].dest.partition(".")[0]
        if name != told or not name:  # a class that a group's class reads has a title of its own
            lines.append(f"\n## {heading(name, group.title or '')}\n")
        told = name
        lines += [line for action in actions for line in of_option(action)]
    return "\n".join(lines)


def is_option(action: argparse.Action) -> bool:
    """Whether a run can be given it: not help, nor the name of a group, which takes a file."""
    return bool(action.option_strings) and action.metavar != "CONFIG" and not action.dest.endswith("help")


def heading(name: str, title: str) -> str:
    """A group's: its title is the first line of a class's docstring."""
    if not name:
        return "What to run"
    if name == "trainer":
        return "`--trainer`: Lightning's own"
    first = title.split(". ")[0].rstrip(".")
    return f"`--{name}`: {first[:1].lower()}{first[1:]}"


def of_option(action: argparse.Action) -> Iterator[str]:
    """One entry of a list of definitions, with an anchor of the option's name."""
    yield f"`--{action.dest}`{{ #{action.dest} }} {facts(action)}".rstrip()
    text = " ".join((action.help or "").replace("%%", "%").split())
    text = re.sub(r"(?<![`\w])--[\w.]+\w", r"`\g<0>`", text).replace("<", "&lt;").replace("*", "\\*")
    plain = re.match(r"[a-z]+[ ,.;:]", text)
    yield f":   {text[:1].upper() + text[1:] if plain else text}\n"


def facts(action: argparse.Action) -> str:
    """Type and default."""
    hint = bool if isinstance(action, ActionYesNo) else getattr(action, "_typehint", action.type)
    if hint is None:
        return ""
    value = "null" if action.default is None else str(action.default)
    return f"*{in_words(hint)}*, default `{value.lower() if value in ('True', 'False') else value}`"


def in_words(hint: Any) -> str:
    """A type as a reader says it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " | ".join(dict.fromkeys(map(str, arguments)))
    if origin in (Union, UnionType):
        return " | ".join(dict.fromkeys(word for one in arguments for word in in_words(one).split(" | ")))
    if origin is Callable:
        return "function" if arguments[-1] is Any else in_words(arguments[-1])
    if origin:
        return f"{in_words(origin)} of {', '.join(map(in_words, arguments))}"
    return WORDS.get(hint, hint.__name__)
