"""A hook of mkdocs: pages that the site has and ``docs/`` has not.

What stands elsewhere in the repository (README, CONTRIBUTING, examples, …) becomes a page, the options are read off the
recipe's parser, and the reference has a page for each room with the public names of its ``__all__``. Links between all
of them are written for the repository, so that they work there, and are turned to the site's pages here.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
from options import options_page
from rooms import drawn

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {
    "ippo": "PPO, its data and its buffer",
    "ippo.callbacks": "Callbacks",
    "ippo.callbacks.influence.options": "Options of the filter",
    "ippo.influence": "Influence scores",
    "ippo.ppo.options": "Options of PPO and of evaluation",
    "ippo.ppo.objective": "What is minimised",
    "ippo.models": "Models",
    "ippo.rollout.sampling": "Sampling",
    "ippo.rollout.engines": "Engines",
    "ippo.data": "Tasks",
    "ippo.data.prompts": "Prompts",
    "ippo.rewards": "Rewards and verdicts",
    "ippo.sft": "Supervised fine-tuning",
    "ippo.metrics": "Metrics",
    "ippo.functional": "Formulas",
}
PAGES = {  # of the repository -> of the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "ippo/influence/README.md": "influence.md",
    "LICENSE": "license.md",
    "CITATION.cff": "citation.md",
    "examples": "examples/index.md",
    "docs": "index.md",
    **{f"examples/{path.name}": f"examples/{path.stem}.md" for path in sorted(ROOT.glob("examples/*.py"))},
}
LANGUAGE = {".py": "python", ".cff": "yaml", "": "text"}
BADGES = re.compile(r"^!\[.*https://.*\n\n", re.MULTILINE)
"""They are fetched, and the site reads offline."""
LINK = re.compile(r"(\]\(|^\[[^\]]+\]: *)(?!\w+:|#)([^)\s#]+)", re.MULTILINE)


def on_config(config: MkDocsConfig) -> None:
    """Name the examples and the rooms in the sections that wait for them."""
    sections = {name: pages for part in config.nav for name, pages in part.items()}
    both = [*sections["Tutorials"], *sections["Reference"]]
    inside = {name: pages for one in both for name, pages in one.items()}
    programs = [page for page in PAGES.values() if page.startswith("examples/") and page != "examples/index.md"]
    inside["Examples"] += ["examples/index.md", *({Path(page).stem: page} for page in programs)]
    inside["API"] += [{room: f"reference/{room}.md"} for room in ROOMS]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    for source, target in PAGES.items():
        if (ROOT / source).is_file():
            files.append(File.generated(config, target, content=content(ROOT / source)))
    files.append(File.generated(config, "examples/index.md", content=examples()))
    files.append(File.generated(config, "options.md", content=options_page()))
    for room in ROOMS:
        files.append(File.generated(config, f"reference/{room}.md", content="\n".join(reference(room))))
    return files


def content(path: Path) -> str:
    """A file as a page: Markdown as it is, all else as code under its name."""
    text = path.read_text()
    if path.suffix == ".md":
        return text
    return f"# {path.name}\n\n````{LANGUAGE[path.suffix]}\n{text}\n````\n"


def examples() -> str:
    """The list of the examples, each with the first line of its docstring."""
    lines = ["# Examples", "", "Whole programs; each runs in under a minute on a CPU.", ""]
    for path in sorted(ROOT.glob("examples/*.py")):
        first = re.match(r'"""(.+?)("""|$)', path.read_text(), re.MULTILINE)[1]
        lines.append(f"- [`{path.name}`]({path.stem}.md): {first}")
    return "\n".join([*lines, ""])


def reference(room: str) -> Iterator[str]:
    """The page of a room: each public name, from its docstring."""
    module = import_module(room)
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == room and not name.startswith("_")
    ]
    yield f"# {ROOMS[room]}\n\n`{room}`"
    for name in sorted(names, key=str.casefold):
        yield f"\n::: {room}.{name}"
    yield ""


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that are right in the repository into links that are right on the site."""
    site = page.file.src_uri
    if site == "architecture.md":
        markdown = drawn(markdown)
    if site == "index.md":
        page.meta["hide"] = ["navigation"]  # that of a section which has one page
        markdown = BADGES.sub("", markdown)
    homes = {target: source for source, target in PAGES.items() if (ROOT / source).is_file()}
    here = homes.get(site, f"docs/{site}")
    if not (ROOT / here).is_file():
        return markdown  # a page that is made has links of the site

    def turned(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), match[2]))
        on_site = PAGES.get(target) or target.removeprefix("docs/")
        return match[1] + posixpath.relpath(on_site, posixpath.dirname(site) or ".")

    fences = re.split(r"(^(`{3,}).*?^\2$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(
        LINK.sub(turned, part) if place % 3 == 0 else part for place, part in enumerate(fences) if place % 3 != 2
    )
