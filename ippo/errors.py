"""One exception for everything that is wrong before work starts."""

from __future__ import annotations


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


def require(condition: bool, argument: str, value: object, remedy: str) -> None:
    """Raise :class:`UsageError` unless ``condition`` holds."""
    if not condition:
        raise UsageError(argument, value, remedy)
