"""Multiple choice: the letter after ``####``."""

from __future__ import annotations

import re

_CHOICE = re.compile(r"\s*\(?([A-Z])\)?(?![A-Za-z0-9])")


def chosen(response: str) -> str | None:
    """The letter after the last ``####``, or None where there is none.

    Example:
        >>> chosen("A bed is soft.\\n#### C"), chosen("#### (B) a bed"), chosen("#### Bed"), chosen("C")
        ('C', 'B', None, None)
    """
    _, mark, tail = response.rpartition("####")
    found = _CHOICE.match(tail[:16]) if mark else None
    return found[1] if found else None
