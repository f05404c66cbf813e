"""What a checkpoint holds: one file or, where ranks keep parts of the models, a directory with a file of each rank.

Such a directory is torch's (``torch.distributed.checkpoint``), in Lightning's form. Its table of contents and its plain
values are pickles, which torch reads as they come; here they are first found to hold no code.
"""

from __future__ import annotations

import io
import pickletools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorStorageMetadata

from ippo.errors import require

_CONTENTS, _FACTS = ".metadata", "meta.pt"  # torch's name, written when all ranks are done; and Lightning's, the last
_WEIGHTS = "state_dict"
_PLAIN = {
    "torch": {"Size", "bfloat16", "bool", "float16", "float32", "float64", "int32", "int64", "uint8"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "pathlib": {"Path", "PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
}  # fmt: skip
"""What a table of contents may be made of: classes that hold values and do nothing."""


def facts_of(path: Path) -> dict[str, Any]:
    """All that a checkpoint holds beside weights and optimizer: counters, callbacks, options."""
    place = path / _FACTS if path.is_dir() else path
    return torch.load(place, map_location="cpu", weights_only=True, mmap=True)


def weights_of(path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint, whole, in this process alone.

    Raises:
        UsageError: if a directory holds code, or not all of its files.
    """
    if not path.is_dir():
        return facts_of(path)[_WEIGHTS]
    contents = require_sound_folder(path).state_dict_metadata
    found: dict[str, Tensor] = {}
    for name, entry in contents.items():
        if name.startswith(f"{_WEIGHTS}.") and isinstance(entry, TensorStorageMetadata):
            found[name.removeprefix(f"{_WEIGHTS}.")] = torch.empty(entry.size, dtype=entry.properties.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is but one process, which is meant
        dcp.load({_WEIGHTS: found}, checkpoint_id=path, no_dist=True)
    return found


def require_sound_folder(path: Path) -> Metadata:
    """Make sure that a checkpoint of several files is complete and holds values alone; its table of contents.

    Raises:
        UsageError: if a file is missing or short, or there is code in one.
    """
    table = path / _CONTENTS
    require(table.is_file() and (path / _FACTS).is_file(), "checkpoint", str(path), "it was not written to its end")
    foreign = sorted({name for name in _globals(table.read_bytes()) if not _is_plain(name)})
    require(not foreign, "checkpoint", str(path), f"its table of contents holds code ({', '.join(foreign)[:80]})")
    contents = dcp.FileSystemReader(path).read_metadata()
    for index, place in contents.storage_data.items():
        file = path / place.relative_path
        whole = file.parent == path and file.is_file() and file.stat().st_size >= place.offset + place.length
        require(whole, "checkpoint", str(path), f"{file.name} is missing or cut short")
        if isinstance(contents.state_dict_metadata.get(index.fqn), BytesStorageMetadata):
            _require_value(file, place.offset, place.length)
    return contents


def _require_value(file: Path, offset: int, length: int) -> None:
    with file.open("rb") as stream:
        stream.seek(offset)
        value = io.BytesIO(stream.read(length))
    try:
        torch.load(value, weights_only=True)
    except Exception as error:
        require(False, "checkpoint", str(file), f"it holds more than values ({type(error).__name__})")


def _is_plain(name: str) -> bool:
    module, _, leaf = name.partition(" ")
    return leaf in _PLAIN.get(module, ())


def _globals(pickled: bytes) -> Iterator[str]:
    """ "module name" of whatever a pickle would call or make; nothing is run.

    Names that are not written out in the two operations before are not made out, and so are no plain ones.
    """
    memo: dict[Any, Any] = {}
    last: list[Any] = [None, None]
    for operation, argument, _ in pickletools.genops(pickled):
        match operation.name:
            case "MEMOIZE":
                memo[len(memo)] = last[-1]
                continue
            case "SHORT_BINUNICODE" | "BINUNICODE":
                last.append(argument)
            case "BINGET" | "LONG_BINGET":
                last.append(memo.get(argument))
            case "STACK_GLOBAL":
                yield f"{last[-2]} {last[-1]}"
                last.append(None)
            case "GLOBAL" | "INST":
                yield str(argument)
                last.append(None)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                yield f"{operation.name} of an older protocol"  # another way to name what is called
            case "EXT1" | "EXT2" | "EXT4" | "PERSID" | "BINPERSID":
                yield operation.name
            case _:
                last.append(None)
