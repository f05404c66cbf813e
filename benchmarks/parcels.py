"""A folder in parts of a limited size, with checksums: for machines that take a few files of so many MiB at a time."""

from __future__ import annotations

import hashlib
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from ippo.errors import require

LIST = "parts.json"
MIB = 2**20


def pack(source: Path, target: Path, mib: float) -> list[Path]:
    """Write all of a folder into ``target``: parts of at most ``mib`` MiB, and their list.

    Raises:
        UsageError: if there is no such folder, or something is at ``target`` already.
    """
    require(source.is_dir(), "pack", str(source), "there is no such folder")
    require(mib > 0, "part_mib", mib, "use a number above 0")
    inside = target.resolve().is_relative_to(source.resolve())
    require(not inside, "pack", str(target), "it lies in the folder that is packed: name another one")
    _require_empty("pack", target)
    target.mkdir(parents=True, exist_ok=True)
    parts = []
    with tempfile.TemporaryFile(dir=target) as whole:
        with tarfile.open(fileobj=whole, mode="w:gz") as archive:
            archive.add(source, arcname=".")
        whole.seek(0)
        while content := whole.read(int(mib * MIB)):
            path = target / f"part-{len(parts):03d}"
            path.write_bytes(content)
            parts.append(path)
    found = [{"name": path.name, "sha256": digest(path)} for path in parts]
    (target / LIST).write_text(json.dumps(found, indent=1) + "\n")
    return parts


def unpack(source: Path, target: Path) -> None:
    """Join what :func:`pack` wrote, into a new or empty folder.

    Raises:
        UsageError: if a part is missing or is not what it was, or something is at ``target`` already.
    """
    require((source / LIST).is_file(), "unpack", str(source), f"it has no {LIST}: give a folder that --pack wrote")
    _require_empty("unpack", target)
    listed: list[dict[str, Any]] = json.loads((source / LIST).read_text())
    paths = [source / one["name"] for one in listed]
    missing = [path.name for path in paths if not path.is_file()]
    require(not missing, "unpack", str(source), f"it lacks {', '.join(missing)} of {len(paths)} parts: bring them too")
    spoiled = [one["name"] for one, path in zip(listed, paths, strict=True) if digest(path) != one["sha256"]]
    require(not spoiled, "unpack", str(source), f"{', '.join(spoiled)} is not what was packed: bring it again")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=target) as whole:
        for path in paths:
            whole.write(path.read_bytes())
        whole.seek(0)
        with tarfile.open(fileobj=whole, mode="r:gz") as archive:
            archive.extractall(target, filter="data")


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _require_empty(word: str, target: Path) -> None:
    taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    require(not taken, word, str(target), "there is something already: name another folder, or remove it")
