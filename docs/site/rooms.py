"""The picture of the rooms as SVG: GitHub draws Mermaid, a site that is read offline has nothing that could."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import networkx

FENCE = re.compile(r"^```mermaid\n.*?^```\n", re.MULTILINE | re.DOTALL)
WIDTH, HEIGHT, ACROSS, DOWN = 92, 26, 108, 58
"""Of a box, and from one box to the next."""


def drawn(markdown: str) -> str:
    """The page with the picture in place of its Mermaid."""
    rooms = runpy.run_path(str(Path(__file__).parents[1] / "draw_rooms.py"))["rooms"]()
    return FENCE.sub(lambda _: picture(rooms), markdown)


def places(graph: networkx.DiGraph) -> dict[str, tuple[float, float]]:
    """The middle of each box: its row is the length of the longest way down to it."""
    rows = [sorted(row) for row in networkx.topological_generations(graph)]
    widest = max(map(len, rows))
    at: dict[str, tuple[float, float]] = {}
    for depth, row in enumerate(rows):
        above = {room: [at[one][0] for one in graph.predecessors(room)] for room in row}
        row.sort(key=lambda room: sum(above[room]) / max(1, len(above[room])))
        left = (widest - len(row)) * ACROSS / 2 + ACROSS / 2
        at |= {room: (left + place * ACROSS, depth * DOWN + HEIGHT) for place, room in enumerate(row)}
    return at


def picture(graph: networkx.DiGraph) -> str:
    """An SVG in the page's own colours, on one line, so that Markdown leaves it alone."""
    at = places(graph)
    parts = []
    for source, target in sorted(graph.edges):
        (x, y), (to_x, to_y) = at[source], at[target]
        y, to_y = y + HEIGHT / 2, to_y - HEIGHT / 2 - 5
        bend = (to_y - y) / 2
        curve = f"M{x:g} {y:g}C{x:g} {y + bend:g} {to_x:g} {to_y - bend:g} {to_x:g} {to_y:g}"
        parts.append(f'<path d="{curve}" marker-end="url(#head)"/>')
    for room, (x, y) in at.items():
        box = f'x="{x - WIDTH / 2:g}" y="{y - HEIGHT / 2:g}" width="{WIDTH}" height="{HEIGHT}" rx="4"'
        parts.append(f'<rect {box}/><text x="{x:g}" y="{y + 4:g}">{room}</text>')
    width, height = (max(place[axis] for place in at.values()) for axis in (0, 1))
    tip = '<path d="M0 0L6 3L0 6z"/>'
    head = f'<marker id="head" viewBox="0 0 6 6" refX="1" refY="3" markerWidth="5" orient="auto">{tip}</marker>'
    told = 'role="img" aria-label="Which room imports which"'
    size = f'viewBox="0 0 {width + ACROSS / 2:g} {height + HEIGHT:g}"'
    return f'<svg class="rooms" {told} {size}><defs>{head}</defs>{"".join(parts)}</svg>\n'
