"""Draw the rooms of the package from its imports, as the Mermaid diagram of ``docs/architecture.md``.

    python docs/draw_rooms.py            # prints it
    python docs/draw_rooms.py --write    # puts it into the page

Rooms stand in the order of ``[tool.importlinter]`` in ``pyproject.toml``. An arrow is an import; those that a longer
way over other rooms already shows are left out.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import grimp
import networkx

PAGE = Path(__file__).with_name("architecture.md")
PLACE = re.compile(r"```mermaid\n.*?```\n", re.DOTALL)


def rooms() -> networkx.DiGraph:
    """What each room imports of the others, without what follows from the rest."""
    imports = grimp.build_graph("ippo", cache_dir=None)
    graph = networkx.DiGraph()
    for module in imports.modules - {"ippo"}:  # whose names are the rooms' own, lent out
        for other in imports.find_modules_directly_imported_by(module) - {"ippo"}:
            source, target = module.split(".")[1], other.split(".")[1]
            if source != target:
                graph.add_edge(source, target)
    return networkx.transitive_reduction(graph)


def diagram() -> str:
    """The picture's text.

    Raises:
        networkx.NetworkXError: if rooms import each other in a circle.
    """
    arrows = sorted(f"    {source} --> {target}" for source, target in rooms().edges)
    return "\n".join(["```mermaid", "flowchart TD", *arrows, "```", ""])


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(PLACE.sub(lambda _: diagram(), PAGE.read_text()))
    else:
        print(diagram(), end="")
