"""What the pages say runs."""

from __future__ import annotations

import pkgutil
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from ippo.callbacks import InfluenceFilterCallback
from ippo.recipes.parser import build_parser, parse
from ippo.recipes.presets import preset_files

ROOT = Path(__file__).resolve().parents[1]
PAGES = (  # from this heading on
    ("README.md", "**3. One callback in your own Trainer.**"),
    ("docs/add-to-your-project.md", "# "),
    ("docs/tasks.md", "## Reward functions"),
    ("docs/monitor.md", "# "),
    ("docs/watch.md", "# "),
)
ALL = [
    str(page.relative_to(ROOT)) for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("ippo/**/*.md"))
]


@pytest.mark.parametrize(("page", "heading"), PAGES)
def test_snippets_run_one_after_the_other(
    page: str, heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text[text.index(heading) :], re.MULTILINE | re.DOTALL)
    assert blocks
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks))
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script))


def built(node: Any) -> Any:
    """What Hydra makes of a config: ``_target_`` is called with what stands beside it."""
    if isinstance(node, list):
        return [built(one) for one in node]
    if not isinstance(node, dict):
        return node
    options = {key: built(value) for key, value in node.items() if key != "_target_"}
    if "_target_" not in node:
        return options
    if node["_target_"] == "hydra.utils.get_method":
        return pkgutil.resolve_name(options["path"])
    return pkgutil.resolve_name(node["_target_"])(**options)


def test_the_hydra_config_builds_the_callback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_project.py").write_text("def losses(module, batch):\n    return module(batch)\n")
    monkeypatch.syspath_prepend(tmp_path)
    page = (ROOT / "docs/add-to-your-project.md").read_text()
    (block,) = re.findall(r"^```yaml\n(callbacks:.*?)^```", page, re.MULTILINE | re.DOTALL)
    (callback,) = built(yaml.safe_load(block))["callbacks"]
    assert isinstance(callback, InfluenceFilterCallback)
    assert callback.losses.__module__ == "my_project"
    assert (callback.unit, callback.scorer.parameters) == ("batch", "^head")


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ALL)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", path.read_text()):
        to = path.parent / target if target else path
        assert to.exists(), target
        assert not anchor or anchor in anchors(to), f"{target}#{anchor}"


def test_the_site_has_a_place_for_every_page() -> None:
    """And ``make docs`` refuses one that it has none for."""
    site = (ROOT / "mkdocs.yml").read_text()
    placed = {*re.findall(r": (\S+\.md)$", site, re.MULTILINE), "package.md"}  # that is for the package index
    assert {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")} <= placed


def test_the_picture_of_the_rooms_is_that_of_the_imports() -> None:
    draw = runpy.run_path(str(ROOT / "docs/draw_rooms.py"))
    assert draw["diagram"]() in (ROOT / "docs/architecture.md").read_text()


def commands(page: str) -> list[str]:
    """The recipes' command lines of a page, variables filled in; not those that read a file of the reader's."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    variables = dict(found.groups() for line in lines if (found := re.match(r'(\w+)="(.*)"$', line)))
    filled = [re.sub(r"\$(\w+)", lambda found: variables.get(found[1], found[0]), line) for line in lines]
    return [line for line in filled if re.match(r"python -m ippo\.recipes\.(math|commonsense|physics) --", line)]


@pytest.mark.parametrize(("page", "command"), [(page, command) for page in ALL for command in commands(page)])
def test_the_recipes_take_the_options_of_the_pages(page: str, command: str) -> None:
    words = shlex.split(command, comments=True)[3:]
    if any(word.endswith(".yaml") for word in words) or "--print_config" in words:
        pytest.skip("it is about a file of the reader's")
    parse(build_parser("recipe", "", preset_files(words, "embedded", "tiny")), words)
