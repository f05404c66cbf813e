"""What is wrong with a command line, in one line: the argument, its value, and what to write instead."""

from __future__ import annotations

import difflib
import inspect
import pkgutil
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from ippo.errors import UsageError, near

_WORDS = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "a text", "NoneType": "null"}
_SEE = "see --help all"
_UNTOLD = "…"  # by jsonargparse: the value of an option in a file that there is not


def explain(message: str, known: Iterable[str] = ()) -> UsageError:
    """One line out of jsonargparse's many.

    Args:
        message: its error.
        known: the names of all options, to find the one that was meant.

    Example:
        >>> print(explain('Parser key "ppo.lam":\\n  Expected a <class \\'float\\'>. Got value: often'))
        ppo.lam = 'often': use a number
        >>> print(explain('unrecognized arguments: --ppo.lan=1', ["ppo.lam", "ppo.gamma"]))
        ppo.lan = '1': there is no such option; did you mean --ppo.lam?
        >>> print(explain('Parser key "filter":\\n  - min_survival = 3.0: use a share between 0 (never stop) and 1'))
        filter.min_survival = '3.0': use a share between 0 (never stop) and 1
    """
    if own := re.findall(r"^[ -]*(\w+) = (.+?): (.+)$", message, re.MULTILINE):  # one of our own checks, inside a class
        name, value, remedy = own[-1]
        key = re.search(r'key "([^"]+)"', message)
        return UsageError(f"{key[1]}.{name}" if key else name, value, remedy)
    for pattern, tell in _SHAPES:
        if match := re.search(pattern, message, re.DOTALL):
            return tell(match, list(known))
    return _of_a_key(message) or UsageError("command line", _plain(message), _SEE)


def located(error: UsageError, arguments: Sequence[str]) -> UsageError:
    """The same error with the file and line that it comes from, where that is a ``--config`` file."""
    said = [word[2:].split("=")[0] for word in arguments if word.startswith("--")]
    if inside := [name for name in said if name.endswith(f".{error.argument}")]:  # a class knows no name but its own
        return UsageError(inside[-1], error.value, error.remedy)
    if error.argument in said:
        return error
    for path in config_files(arguments):
        if found := _entry(path, error.argument.split(".")):
            line, value = found
            return UsageError(
                error.argument,
                value if error.value == _UNTOLD else error.value,
                f"{error.remedy} ({path}, line {line})",
            )
    return error


def require_readable(arguments: Sequence[str]) -> None:
    """Refuse a ``--config`` file that is not there, or holds no options.

    Raises:
        UsageError: naming the line.
    """
    for path in config_files(arguments):
        try:
            content = yaml.safe_load(path.read_text())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "somewhere"
            raise UsageError("config", str(path), f"it is no YAML: {place}: {error.problem}") from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            why = "there is no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
            raise UsageError("config", str(path), " ".join(why.split())) from error
        if content is not None and not isinstance(content, dict):
            raise UsageError("config", str(path), "it must hold options, a line each, as `task: gsm8k`")


def config_files(arguments: Sequence[str]) -> list[Path]:
    """The files that a command line names, in their order.

    Example:
        >>> [str(path) for path in config_files(["--config", "a.yaml", "--task=x", "--config=b.yaml"])]
        ['a.yaml', 'b.yaml']
    """
    found = [following for word, following in pairwise(arguments) if word == "--config"]
    found += [word.partition("=")[2] for word in arguments if word.startswith("--config=")]
    return [Path(name) for name in found]


def _unknown(name: str, value: Any, known: Sequence[str]) -> UsageError:
    """An option that there is not. One with the same last part may be meant, or one whose last part looks like it."""
    written = name.lstrip("-").replace("-", "_")
    group, _, leaf = written.rpartition(".")
    same_leaf = [one for one in known if one.rpartition(".")[2] == leaf and (not group or not _is_group(group, known))]
    places = [one for one in known if one.rpartition(".")[0] == group] if _is_group(group, known) else known
    by_leaf = difflib.get_close_matches(leaf, {one.rpartition(".")[2] for one in places}, n=1)
    alike = [one for one in places if one.rpartition(".")[2] in by_leaf]
    meant = " or ".join(f"--{one}" for one in (same_leaf or alike)[:3])
    return UsageError(
        name.lstrip("-"), value, "there is no such option" + (f"; did you mean {meant}?" if meant else f": {_SEE}")
    )


def _is_group(name: str, known: Sequence[str]) -> bool:
    return not name or any(one.startswith(f"{name}.") for one in known)


def _unrecognised(match: re.Match[str], known: Sequence[str]) -> UsageError:
    first, _, rest = match[1].strip().partition(" ")
    if not first.startswith("-"):
        return UsageError("command line", first, "a value without an option before it: write --NAME VALUE")
    name, equals, value = first.partition("=")
    return _unknown(name, value if equals else rest.split(" ")[0] if rest and not rest.startswith("-") else None, known)


_SHAPES = (
    (r"unrecognized arguments: (.*)", _unrecognised),
    (r"Group '(.+?)' does not accept option '(.+?)'", lambda m, known: _unknown(f"{m[1]}.{m[2]}", _UNTOLD, known)),
    (r"\AOption '(.+?)' is not accepted", lambda m, known: _unknown(m[1], _UNTOLD, known)),
    (
        r"argument --(\w+)/--no_\w+: ignored explicit argument '(.*)'",
        lambda m, _: UsageError(m[1], m[2], f"it takes no value: say --{m[1]} or --no_{m[1]}"),
    ),
    (
        r"argument --([\w.]+): expected one argument",
        lambda m, _: UsageError(m[1], None, f"it needs a value: --{m[1]} VALUE"),
    ),
    (
        r'Parser key "(\w+)":\s+Unable to load config \'(.*?)\'',
        lambda m, _: UsageError(m[1], m[2], f"a group of options has no value of its own: say --{m[1]}.NAME VALUE"),
    ),
)


def _of_a_key(message: str) -> UsageError | None:
    """What jsonargparse says of one key: of several inside each other, the innermost."""
    keys = list(re.finditer(r'Parser key "([^"]+)"', message))
    if not keys:
        return None
    argument = keys[0][1]
    for inner in keys[1:]:
        argument = inner[1] if inner[1].startswith(argument) else f"{argument}.{inner[1]}"
    block = message[keys[-1].start() :]
    given = re.search(r"(?:Given value|Got value): (.*)", block)
    value = given[1] if given else _UNTOLD
    if nested := re.match(r"NestedArg\(key='(.+?)', val='(.*?)'\)", value):
        argument, value = f"{argument}.{nested[1]}", nested[2]
        if bare := re.search(r"Expected a dot import path string: (\w+)$", block, re.MULTILINE):
            chosen = f"{bare[1]} is a name without options: choose a class first, --{keys[0][1]} CLASS_PATH"
            return UsageError(argument, value, chosen)
    help_of = f"see --{keys[0][1]}.help"
    if needs := re.search(r"class_path '([\w.]+)':\s+the following arguments are required: ([\w, ]+)", block):
        name = needs[2].strip()
        return UsageError(argument, needs[1].rpartition(".")[2], f"it needs {name}: --{argument}.{name} VALUE")
    if refused := re.search(r"class_path '([\w.]+)':\s+Option '(\w+)' is not accepted", block):
        owner, name = refused[1].rpartition(".")[2], refused[2]
        meant = near(name, inspect.signature(_resolved(refused[1]) or object).parameters)
        argument, value = (argument, value) if nested else (f"{argument}.{name}", _UNTOLD)
        return UsageError(argument, value, f"{owner} has no such option{meant}; {help_of}")
    if absent := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", block):
        meant = near(absent[2], dir(_resolved(absent[1])))
        return UsageError(argument, value, f"{absent[1]} has no {absent[2]}{meant}")
    if lost := re.search(r"No module named '([\w.]+)'", block):
        return UsageError(argument, value, f"there is no module {lost[1]!r} here: is it installed, or its directory?")
    expected = _expected(block, value)
    return UsageError(argument, value, expected) if expected else None


def _expected(block: str, value: str) -> str:
    """What a value may be, in words.

    Example:
        >>> _expected("Expected a typing.Literal['separate', 'shared', 'lora']. Got value: shraed", "shraed")
        "use separate, shared or lora; did you mean 'shared'?"
    """
    lines = re.findall(r"Expected an? (.+?)(?:[.] |: |$)", block, re.MULTILINE)
    literals = [one for line in lines for one in re.findall(r"typing\.Literal\[(.*?)\]", line)]
    choices = list(dict.fromkeys(one.strip().strip("'") for part in literals for one in part.split(",")))
    kinds = [kind for line in lines for kind in re.findall(r"<class '(\w+)'>", line) if kind in _WORDS]
    if {"int", "float"} <= set(kinds):
        kinds.remove("int")
    classes: list[str] = []
    if any(line.startswith("dot import path") for line in lines):
        bases = dict.fromkeys(re.findall(r"(?:ippo|lightning)[\w.]*\.[A-Z]\w+", block))
        classes = sorted({name for base in bases for name in _kinds_of(_resolved(base))})
    said = [*choices, *dict.fromkeys(_WORDS[kind] for kind in kinds if kind != "NoneType")]
    said += [*(classes if len(classes) <= 8 else []), *(["a class_path"] if classes else [])]
    said += ["null"] if "NoneType" in kinds else []
    if not said:
        return ""
    told = said[0] if len(said) == 1 else f"{', '.join(said[:-1])} or {said[-1]}"
    return f"use {told}{near(value, [*choices, *classes])}"


def _kinds_of(base: Any) -> list[str]:
    """The public names of a class and of those that derive from it."""
    if not inspect.isclass(base):
        return []
    own = [] if inspect.isabstract(base) or base.__name__.startswith("_") else [base.__name__]
    return own + [name for one in base.__subclasses__() for name in _kinds_of(one)]


def _resolved(name: str) -> Any:
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError):
        return None


def _entry(path: Path, parts: Sequence[str]) -> tuple[int, str] | None:
    """The line of a YAML file that sets an option, and the value; ``init_args`` are passed through."""
    node: Any = yaml.compose(path.read_text())
    found = None
    for part in parts:
        entries = {key.value: (key, value) for key, value in getattr(node, "value", ()) if hasattr(key, "value")}
        if part not in entries and "init_args" in entries:
            inner = entries["init_args"][1].value
            entries = {key.value: (key, value) for key, value in inner}
        if part not in entries:
            return None
        key, node = entries[part]
        found = key.start_mark.line + 1
        if not isinstance(node, yaml.MappingNode):
            break
    return None if found is None else (found, node.value if isinstance(node, yaml.ScalarNode) else _UNTOLD)


def _plain(message: str) -> str:
    """A message that no rule fits, without Python's names of types."""
    named = re.sub(r"<class '([\w.]+)'>", lambda kind: _WORDS.get(kind[1], kind[1].rpartition(".")[2]), message)
    return " ".join(named.replace("typing.Literal", "one of ").split())
