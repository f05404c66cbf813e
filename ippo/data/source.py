"""Where a task's rows come from: the hub, or a local copy in parquet, JSON lines or CSV."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ippo.errors import UsageError, require

RawRows = list[dict[str, Any]]

_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
_SPLITS = {"train": "train", "test": "test", **dict.fromkeys(("validation", "valid", "val", "dev"), "validation")}


@dataclass(frozen=True)
class Source:
    """A data set as its authors publish it.

    Args:
        hub: its id on the Hugging Face hub.
        columns: what every row must have.
        optional: columns that are read where they exist.
        configs: its configurations on the hub, each with the same columns; read one after the other.
        argument: what names the path, for messages.
    """

    hub: str
    columns: Sequence[str]
    optional: Sequence[str] = ()
    configs: Sequence[str] = ()
    argument: str = "task_path"

    def read(self, path: str | Path | None = None) -> dict[str, RawRows]:
        """The rows of each split (``train``, ``validation``, ``test``) that is there.

        Args:
            path: a local parquet, JSON, JSON lines or CSV file, or a directory of them; the hub when None. The
                split of a file is the one that its path names (``data/train-00000.parquet``, ``dev.jsonl``), or else
                ``train``.

        Raises:
            UsageError: if nothing can be read there, or a column is missing or holds no text.
        """
        parts = self._from_hub() if path is None else self.tables(path)
        splits: dict[str, RawRows] = {}
        for name, table in parts:
            missing = [column for column in self.columns if column not in table.column_names]
            expected = f"{self.hub} has the columns {', '.join(self.columns)}, but here {', '.join(missing)} is missing"
            remedy = f"{expected}; found: {', '.join(table.column_names)}. Rename the columns of your copy"
            require(not missing, self.argument, str(path or self.hub), remedy)
            known = [column for column in (*self.columns, *self.optional) if column in table.column_names]
            rows = table.select_columns(known).to_list()
            for column in self.columns:
                odd = next((row[column] for row in rows if not isinstance(row[column], (str, list, type(None)))), None)
                remedy = f"its column {column} holds {odd!r}, which is no text: convert the column of your copy"
                require(odd is None, self.argument, str(path or self.hub), remedy)
            splits.setdefault(name, []).extend(rows)
        return splits

    def _from_hub(self) -> list[tuple[str, Any]]:
        import datasets

        parts: list[tuple[str, Any]] = []
        for config in self.configs or (None,):
            try:
                found = datasets.load_dataset(self.hub, config)
            except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
                said = str(error).splitlines()[0]
                remedy = (
                    f"no network, or no access to the hub's {self.hub} ({said}). On a machine that has it: "
                    f"`hf download --repo-type dataset {self.hub} --local-dir DIRECTORY` (after `hf auth login`, if it "
                    "is gated); then here: --task_path DIRECTORY"
                )
                raise UsageError(self.argument, None, remedy) from error
            parts += [(_split_in(str(name)), table) for name, table in found.items()]
        return parts

    def tables(self, path: str | Path) -> list[tuple[str, Any]]:
        """What a file, or each of a directory's, holds: its split, and its table with all columns.

        Raises:
            UsageError: if nothing can be read there.
        """
        import datasets

        path = Path(path).expanduser()
        require(path.exists(), self.argument, str(path), "there is no such file or directory")
        files = [path] if path.is_file() else self._files_below(path)
        readable = [file for file in files if file.suffix in _BUILDERS]
        kinds = ", ".join(_BUILDERS)
        require(bool(readable), self.argument, str(path), f"it holds no file that ends in {kinds}")
        groups: dict[tuple[str, str], list[str]] = {}
        for file in readable:
            place = file.relative_to(path) if file != path else Path(file.name)
            groups.setdefault((_split_in(str(place.with_suffix(""))), file.suffix), []).append(str(file))
        parts = []
        for (split, suffix), names in groups.items():
            try:
                # In memory, and no second copy left on the disk.
                with tempfile.TemporaryDirectory() as cache, _without_bars():
                    table = datasets.load_dataset(
                        _BUILDERS[suffix], data_files=names, split="train", cache_dir=cache, keep_in_memory=True
                    )
            except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
                reason = str(error.__cause__ or error).splitlines()[0]
                remedy = f"its {split} files cannot be read as {suffix} of one schema ({reason})"
                raise UsageError(self.argument, str(path), remedy) from error
            parts.append((split, table))
        return parts

    def _files_below(self, path: Path) -> list[Path]:
        """All files, or those of this source's configurations where directories are named after them."""
        chosen = [folder for config in self.configs for folder in sorted(path.rglob(config)) if folder.is_dir()]
        files = {file for folder in chosen or [path] for file in folder.rglob("*") if file.is_file()}
        return sorted(file for file in files if not file.stem.startswith("dataset_info"))  # the hub's own notes


@contextmanager
def _without_bars() -> Iterator[None]:
    """A local file is read in no time; a download keeps its bar."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _split_in(name: str) -> str:
    """The split that a name speaks of; of several the last, because a file's own name comes last in its path.

    Example:
        >>> [_split_in(name) for name in ("main/test-00000-of-00001", "dev", "train/algebra", "rows")]
        ['test', 'validation', 'train', 'train']
    """
    words = re.split(r"[^a-z]+", name.lower())
    return next((_SPLITS[word] for word in reversed(words) if word in _SPLITS), "train")
