"""Pages are tests: their Python runs, block after block, what a console shows is compared, and commands are read.

A block that begins with ``# not run here`` is left out, and says so to the reader, too. Commands are not run but for
their options, which the program's own parser takes.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import os
import re
import shlex
import tempfile
import unittest
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

from ippo.cli import _WORDS as WORDS
from ippo.recipes.parser import parse, parser_of
from ippo.recipes.recipe import Recipe

ROOT = Path(__file__).parent
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
HOMES = {"doctor": "ippo.doctor", **{word: f"ippo.experiments.{word}" for word in ("compare", "diagnose", "demo")}}
UNRUN = "# not run here"
collect_ignore_glob = ["docs/*.py", "docs/site/*", "benchmarks/*"]


def skipped(example: Example) -> None:
    """What a page says is not run."""
    raise unittest.SkipTest(str(example.parsed).splitlines()[0])


class Snippets(PythonCodeBlockParser):
    """Python, or a console's lines and answers."""

    def __call__(self, document: Document) -> Iterable[Region]:
        for region in super().__call__(document):
            if str(region.parsed).startswith(UNRUN):
                region.evaluator = skipped
            yield region


class Commands(CodeBlockParser):
    """A shell's lines: each is read, none is run."""

    language = "bash"

    def evaluate(self, example: Example) -> None:
        variables = example.namespace
        for line in example.parsed.replace("\\\n", " ").splitlines():
            if found := re.match(r'(\w+)="?([^"]*)"?$', line) or re.match(r"for (\w+) in (\S+)", line):
                variables[found[1]] = found[2]
            filled = re.sub(r"\$(\w+)", lambda found: variables.get(found[1], found[0]), line)
            read(shlex.split(filled, comments=True))


def read(words: Sequence[str]) -> None:
    """Refuse a command of this repository that there is not, or an option that its program does not take."""
    if words[:1] == ["make"]:
        assert words[1] in TARGETS, words
    elif words[:2] == ["python", "-m"] and words[2].startswith("ippo."):
        read_options(words[2], words[3:])
    elif words[:1] == ["ippo"]:
        assert words[1] in WORDS or words[1].startswith("--"), words
        if words[1] in ("train", "evaluate", "export"):
            read_options("ippo.recipes.math", words[1 + (words[1] == "train") :])
        elif words[1] in HOMES:
            read_options(HOMES[words[1]], words[2:])
    elif words[:1] == ["python"]:
        assert (ROOT / words[1]).is_file(), words


def read_options(module: str, words: Sequence[str]) -> None:
    """As the program would, but for files of the reader's."""
    if any(word.endswith(".yaml") for word in words) or {"--print_config", "--help"} & {*words}:
        return
    if module.startswith("ippo.experiments"):
        _, words = importlib.import_module(module)._parser(module).parse_known_args(words)
        module = "ippo.recipes.math"
    home = importlib.import_module("ippo.recipes.math" if module == "ippo.doctor" else module)
    recipe = next(value for value in vars(home).values() if isinstance(value, Recipe))
    word = words[0] if words[:1] in (["evaluate"], ["export"]) else "train"
    words = [*words[word != "train" :]]
    parse(parser_of(recipe, word, words), words)


def in_an_empty_directory(namespace: dict[str, Any]) -> None:
    """What a page writes goes nowhere; its random numbers are the same each time."""
    leave = namespace["leave_page"] = contextlib.ExitStack()
    leave.callback(os.chdir, os.getcwd())
    os.chdir(leave.enter_context(tempfile.TemporaryDirectory()))
    L.seed_everything(0, verbose=False)


def back(namespace: dict[str, Any]) -> None:
    namespace["leave_page"].close()


pytest_collect_file = Sybil(
    parsers=[Snippets(doctest_optionflags=doctest.ELLIPSIS), Commands()],
    pattern="*.md",
    setup=in_an_empty_directory,
    teardown=back,
).pytest()
