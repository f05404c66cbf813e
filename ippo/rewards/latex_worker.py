"""A program of its own: compares LaTeX answers with ``math_verify``, one JSON request a line, until its input ends.

It is run by path, not imported: so it starts without torch, and :mod:`ippo.rewards.latex` can end it at any moment.
"""

from __future__ import annotations

import json
import sys

_MEMORY = 2 * 1024**3  # bytes: a tower of powers must not take the machine with it


def compare(gold: str, answer: str, tolerance: float) -> bool | None:
    """Whether two LaTeX expressions are equal, or None where one of them cannot be read."""
    from math_verify import parse, verify

    left, right = (parse(f"${text}$", parsing_timeout=None, raise_on_error=True) for text in (gold, answer))
    if not left or not right:
        return None
    return bool(verify(left, right, timeout_seconds=None, raise_on_error=True)) or _near(left[0], right[0], tolerance)


def _near(gold: object, answer: object, tolerance: float) -> bool:
    """Whether two numbers differ by ``tolerance`` at most."""
    try:
        return tolerance > 0 and abs(float(gold) - float(answer)) <= tolerance  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False


def main() -> None:
    """Serve requests ``[gold, answer, tolerance]``; each answer is true, false or null."""
    import logging

    del sys.path[0]  # what lies beside this file must not be taken for a library
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    logging.disable()
    import math_verify  # noqa: F401

    answers, sys.stdout = sys.stdout, sys.stderr
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        try:
            verdict = compare(*json.loads(line))
        except (Exception, RecursionError):  # whatever a parser of free text may raise: it could not be read
            verdict = None
        print(json.dumps(verdict), file=answers, flush=True)


if __name__ == "__main__":
    main()
