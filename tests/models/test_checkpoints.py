"""A checkpoint of several files is read only if all of it is there, and it holds values alone."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from ippo.callbacks.checkpoint import is_whole
from ippo.errors import UsageError
from ippo.models.checkpoints import facts_of, weights_of


class Code:
    """Leaves a file where it is read."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As Lightning leaves it: weights, plain values of the optimizer, and facts."""
    weights = {"head.weight": torch.arange(6.0).view(2, 3), "head.bias": torch.ones(2, dtype=torch.bfloat16)}
    state = {"state_dict": weights, "optimizer_0": {"lr": 1e-3, "betas": (0.9, 0.999), "name": "policy"}}
    dcp.save(state, checkpoint_id=tmp_path / "one.ckpt", no_dist=True)
    torch.save({"epoch": 3}, tmp_path / "one.ckpt" / "meta.pt")
    return tmp_path / "one.ckpt"


def test_weights_and_facts_are_those_that_were_saved(folder: Path, tmp_path: Path) -> None:
    found = weights_of(folder)
    assert facts_of(folder) == {"epoch": 3}
    assert torch.equal(found["head.weight"], torch.arange(6.0).view(2, 3))
    assert found["head.bias"].dtype == torch.bfloat16
    torch.save({"epoch": 3, "state_dict": found}, tmp_path / "file.ckpt")
    assert weights_of(tmp_path / "file.ckpt").keys() == found.keys()
    assert is_whole(folder)


@pytest.mark.parametrize("lost", [".metadata", "meta.pt", "__0_0.distcp"])
def test_one_that_lacks_a_file_is_passed_over(folder: Path, lost: str) -> None:
    (folder / lost).unlink()
    with pytest.warns(UserWarning, match="is not a whole checkpoint"):
        assert not is_whole(folder)


def test_one_that_was_cut_short_is_passed_over(folder: Path) -> None:
    data = folder / "__0_0.distcp"
    data.write_bytes(data.read_bytes()[:-8])
    with pytest.warns(UserWarning, match="is not a whole checkpoint"):
        assert not is_whole(folder)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_the_table_of_contents_does_not_run(folder: Path, tmp_path: Path, protocol: int) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(Code(tmp_path / "ran"), protocol))
    with pytest.raises(UsageError, match="its table of contents holds code"):
        weights_of(folder)
    assert not (tmp_path / "ran").exists()


def test_a_call_whose_name_is_put_together_from_known_words_is_code(folder: Path, tmp_path: Path) -> None:
    words = [b"\x8c" + bytes([len(word)]) + word for word in (b"os", b"system", b"torch", b"Size")]
    pickled = b"\x80\x04" + b"".join(words) + b"00" + b"\x93" + b"."  # the last two are taken off the stack again
    (folder / ".metadata").write_bytes(pickled)
    with pytest.raises(UsageError, match="its table of contents holds code"):
        weights_of(folder)


def test_code_among_the_values_does_not_run(folder: Path, tmp_path: Path) -> None:
    contents = dcp.FileSystemReader(folder).read_metadata()
    place = next(where for index, where in contents.storage_data.items() if index.fqn == "optimizer_0.betas")
    value = io.BytesIO()
    torch.save(Code(tmp_path / "ran"), value)
    with (folder / "__0_0.distcp").open("ab") as data:
        start = data.tell()
        data.write(value.getvalue())
    place.offset, place.length = start, len(value.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(contents))
    with pytest.warns(UserWarning, match="UsageError"):
        assert not is_whole(folder)
    assert not (tmp_path / "ran").exists()
