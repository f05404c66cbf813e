"""What the pages say holds; that it runs is seen to by ``conftest.py`` at the root."""

from __future__ import annotations

import pkgutil
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from ippo.callbacks import InfluenceFilterCallback

ROOT = Path(__file__).resolve().parents[1]
ALL = [
    str(page.relative_to(ROOT)) for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("ippo/**/*.md"))
]


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
