"""Files that appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class StorageError(OSError):
    """A file could not be written: which, why, and what is still there."""


@contextmanager
def whole(path: Path | str) -> Iterator[Path]:
    """Where to write what shall appear at ``path``: a file beside it, put in its place when the block has ended.

    The content reaches the disk before the name does, so that no crash, not even of the machine, leaves half a file
    under ``path``; one that was there before stays until then. Leftovers end in ``.unfinished`` and may be removed.

    Raises:
        StorageError: if the system cannot write, as when the disk is full.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "one.txt"
        >>> with whole(target) as unfinished:
        ...     _ = unfinished.write_text("all of it")
        ...     target.exists()
        False
        >>> target.read_text()
        'all of it'
    """
    path = Path(path)
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        _flush(unfinished)
        unfinished.replace(path)
        if os.name == "posix":  # elsewhere directories cannot be opened, and names reach the disk by themselves
            _flush(path.parent)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError):
            why = error.strerror or str(error)
            told = (
                f"{path} could not be written ({why}). All that was written before is whole: make room, then --resume"
            )
            raise StorageError(told) from error
        raise


def _flush(path: Path) -> None:
    """Let a file, or the names in a directory, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
