from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_origin

import pytest

import ippo

ROOT = Path(ippo.__file__).parent
HEAVY = ("torch", "lightning", "transformers", "datasets", "tensorboard", "jsonargparse")
PUBLIC = ("ippo", "ippo.callbacks", "ippo.influence", "ippo.metrics")


def public_names() -> Iterator[tuple[str, str]]:
    for name in PUBLIC:
        module = importlib.import_module(name)
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == name and key[0] != "_"]
        yield from ((name, key) for key in getattr(module, "__all__", own))


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it, and in full."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(node.module or "")
    return found


def imported_by(*parts: str) -> set[str]:
    """What the files of a room import, the standard library and the room itself left out."""
    room = ROOT.joinpath(*parts)
    files = [room] if room.suffix else sorted(room.rglob("*.py"))
    assert files
    own = ".".join(("ippo", *parts))
    names = {name for path in files for name in imports(path)}
    return {name for name in names if name.split(".")[0] not in sys.stdlib_module_names and not name.startswith(own)}


def within(names: set[str], *allowed: str) -> bool:
    return all(any(name == one or name.startswith(f"{one}.") for one in allowed) for name in names)


def test_importing_the_package_is_light() -> None:
    code = f"import sys, ippo; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("module", "name"), list(public_names()))
def test_public_names_are_there_and_documented(module: str, name: str) -> None:
    thing = getattr(importlib.import_module(module), name)
    if inspect.isclass(thing) and not get_origin(thing):  # Python 3.10 takes Callable[...] for a class
        text = vars(thing).get("__doc__") or ""
        assert text
        assert not text.startswith(f"{name}(")  # a dataclass writes one of its own
    elif inspect.isfunction(thing):
        assert inspect.getdoc(thing)


def test_the_package_lists_its_names_and_knows_no_others() -> None:
    assert set(ippo.__all__) <= set(dir(ippo))
    with pytest.raises(AttributeError, match="module 'ippo' has no attribute 'nonsense'"):
        ippo.nonsense  # noqa: B018


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())) or not path.read_text().strip()


class TestLayers:
    def test_functional_is_tensors_alone(self) -> None:
        assert within(imported_by("functional"), "torch")

    def test_influence_knows_nothing_of_ppo_or_lightning(self) -> None:
        assert within(
            imported_by("influence"), "torch", "ippo.errors", "ippo.functional", "ippo.modes", "ippo.distributed"
        )

    def test_rewards_are_pure_functions_of_texts(self) -> None:
        allowed = ("torch", "ippo.errors", "ippo.modes", "math_verify", "latex2sympy2_extended", "sympy", "psutil")
        assert within(imported_by("rewards"), *allowed)

    def test_guards_are_pure_checks(self) -> None:
        assert within(imported_by("ppo", "guards.py"), "torch", "ippo.errors", "ippo.rollout.episodes")

    def test_files_and_ranks_know_no_room(self) -> None:
        assert not imported_by("files.py")
        assert within(imported_by("distributed.py"), "torch", "numpy", "torchmetrics.utilities.distributed")

    def test_a_room_imports_only_from_rooms_below_it(self) -> None:
        """The rooms in their order are ``[tool.importlinter]`` in pyproject.toml."""
        pytest.importorskip("importlinter", reason="a development package")
        # In a process of its own: it disables every logger that there is, and tests that listen would hear nothing.
        command = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
        subprocess.run([sys.executable, "-c", command], cwd=ROOT.parent, check=True)

    @pytest.mark.parametrize("name", ["texts", "rewards", "sampling", "scores", "gold_size", "cost", "finding"])
    def test_the_doctors_checks_are_functions_of_numbers_and_texts(self, name: str) -> None:
        below = (
            "ippo.doctor",
            "ippo.functional",
            "ippo.rollout.sampling",
            "ippo.rollout.engines.hf",
            "ippo.models.memory",
            "ippo.rollout.sequences",
            "ippo.rollout.end_tokens",
            "ippo.errors",
        )
        known = [other for other in imported_by("doctor", f"{name}.py") if other.startswith("ippo")]
        assert within(set(known), *below)
        assert not {"ippo.doctor.examined", "ippo.doctor.examination"} & set(known)
