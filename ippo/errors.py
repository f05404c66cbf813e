"""One exception for everything that is wrong before work starts."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable
from typing import Any


class UsageError(ValueError):
    """A wrong argument, told in one line: what it is called, what it was, and what to write instead.

    The recipes print it and exit with code 2; in a user's own script it is an ordinary ``ValueError``.

    Args:
        argument: the name under which the user set it, e.g. ``"ppo.minibatch_size"``.
        value: what they set.
        remedy: what to write instead.

    Example:
        >>> print(UsageError("ppo.minibatch_size", 0, "use a whole number of at least 1"))
        ppo.minibatch_size = 0: use a whole number of at least 1
    """

    def __init__(self, argument: str, value: object, remedy: str) -> None:
        self.argument, self.value, self.remedy = argument, value, remedy
        super().__init__(f"{argument} = {value!r}: {remedy}")


def near(value: object, choices: Iterable[str]) -> str:
    """The end of a remedy: which of the ``choices`` may have been meant; empty where none looks like it.

    Example:
        >>> near("gsm8", ["gsm8k", "math"])
        "; did you mean 'gsm8k'?"
        >>> near("x", ["gsm8k", "math"])
        ''
    """
    found = difflib.get_close_matches(str(value), list(choices), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


class OwnAttributeErrors:
    """Base class, before ``nn.Module``, that lets a property's ``AttributeError`` through.

    Python asks ``__getattr__`` when a property raises ``AttributeError``, and a module's says only that it has no such
    attribute as the property's name: what was really missing is lost.
    """

    def __getattr__(self, name: str) -> Any:
        found = inspect.getattr_static(type(self), name, None)
        if isinstance(found, property) and found.fget is not None:
            return found.fget(self)  # raises again, its own error
        return super().__getattr__(name)  # type: ignore[misc]


def require(condition: bool, argument: str, value: object, remedy: str) -> None:
    """Raise :class:`UsageError` unless ``condition`` holds."""
    if not condition:
        raise UsageError(argument, value, remedy)
