"""An extension of griffe: docstrings as the site shows them, with links in place of reStructuredText's roles."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":\w+:`(~?)([\w.]+)`")
EXAMPLE = re.compile(r"^(\s*)Example:$", re.MULTILINE)


class Roles(griffe.Extension):
    """``:func:`~a.b.c` `` becomes a link to ``a.b.c``, if a page of the reference has it, and else code."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Once a package is read, so that names can be resolved."""
        self.rewrite(pkg)

    def rewrite(self, place: griffe.Object) -> None:
        if place.docstring:
            text = ROLE.sub(lambda match: link(match, place), place.docstring.value)
            place.docstring.value = EXAMPLE.sub(r"\1Examples:", text)  # the heading that griffe knows for doctests
        for member in place.members.values():
            if not member.is_alias:
                self.rewrite(member)


def link(match: re.Match[str], place: griffe.Object) -> str:
    """The reference as HTML that autorefs turns to a link where it can."""
    short, name = match[2].rpartition(".")[2] if match[1] else match[2], match[2]
    if not name.startswith("ippo."):
        try:
            name = place.resolve(name)
        except griffe.NameResolutionError:
            return f"`{short}`"
    return f'<autoref optional identifier="{name}"><code>{short}</code></autoref>'
