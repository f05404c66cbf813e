"""The recipe with ``--trainer.strategy fsdp2``: killed and resumed, written out, and judged on one process."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import on_ranks
from pyarrow import parquet
from small_recipe import SMALL, numbers, summary
from transformers import AutoModelForCausalLM

from ippo import PPOModule
from ippo.callbacks.checkpoint import is_whole
from ippo.models.checkpoints import facts_of, weights_of
from ippo.recipes import math

SHARDED = ["--trainer.devices=2", "--trainer.strategy=fsdp2"]
OPTIONS = [*SMALL, "--tiny.layers=2", "--tiny.intermediate_size=33", "--trainer.enable_progress_bar=false"]
OPTIONS += ["--data.prompts_per_iteration=6", "--trainer.max_epochs=3", "--ppo.micro_batch_tokens=150", *SHARDED]


def train(folder: Path, *arguments: str, best_in: Path | None = None) -> int:
    best = {"monitor": "val/unfinished", "dirpath": str((best_in or folder) / "best"), "filename": "{epoch}"}
    callback = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": best}
    own = [f"--trainer.default_root_dir={folder}", f"--trainer.callbacks={json.dumps([callback])}"]
    return math.main([*OPTIONS, *own, *arguments])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of two processes each: ``whole``, and ``killed`` in its third iteration and resumed."""
    folder = tmp_path_factory.mktemp("runs")

    def killed(rank: int) -> int:
        update = PPOModule.update

        def or_die(self: Any, episodes: Any) -> None:
            if self.current_epoch == 2 and rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            update(self, episodes)

        PPOModule.update = or_die  # type: ignore[method-assign]  # in this process, which has no other task
        return train(folder / "killed")

    with pytest.raises(AssertionError, match="a rank failed"):
        on_ranks(killed, folder / "ranks")
    assert on_ranks(lambda rank: train(folder / "whole"), folder / "ranks") == [0, 0]
    assert on_ranks(lambda rank: train(folder / "killed", "--resume"), folder / "ranks") == [0, 0]
    return folder


def test_killed_and_resumed_it_ends_bit_for_bit_where_an_unbroken_run_does(runs: Path) -> None:
    whole, killed = (max((runs / name / "checkpoints").iterdir()) for name in ("whole", "killed"))
    assert whole.name == killed.name == "iteration-00002.ckpt"
    assert whole.is_dir()
    found, expected = weights_of(killed), weights_of(whole)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    mine, theirs = (facts_of(path)["callbacks"] for path in (killed, whole))
    kept = [name for name in theirs if name.startswith(("Influence", "Numeric", "Reproducible", "RewardHacking"))]
    assert len(kept) == 4
    torch.testing.assert_close([mine[name] for name in kept], [theirs[name] for name in kept], rtol=0, atol=0)
    best = [next((runs / name / "best").iterdir()) for name in ("killed", "whole")]  # by a callback of the user's
    assert best[0].name == best[1].name
    assert all(map(is_whole, best))
    assert numbers(runs / "killed") == numbers(runs / "whole")
    for path in (runs / "whole" / "episodes").iterdir():
        assert repr(parquet.read_table(runs / "killed" / "episodes" / path.name)) == repr(parquet.read_table(path))


def test_its_policy_is_one_directory_that_a_process_alone_writes_too(runs: Path, tmp_path: Path) -> None:
    assert math.main(["export", f"--checkpoint={runs / 'killed'}", f"--output={tmp_path / 'alone'}"]) == 0
    written = {path.name: path.read_bytes() for path in (runs / "whole" / "policy").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "alone").iterdir()} == written
    policy = AutoModelForCausalLM.from_pretrained(runs / "whole" / "policy")
    weights = weights_of(next((runs / "whole" / "checkpoints").iterdir()))
    for name, value in policy.state_dict().items():
        assert torch.equal(value, weights[f"model.policy.{name}"]), name


def test_one_process_judges_it_as_two_do(runs: Path, tmp_path: Path) -> None:
    alone = ["--trainer.devices=1", "--trainer.strategy=auto"]
    assert math.main(["evaluate", f"--checkpoint={runs / 'whole'}", f"--output={tmp_path / 'one'}", *alone]) == 0
    two = ["evaluate", f"--checkpoint={runs / 'whole'}", f"--output={tmp_path / 'two'}"]
    assert on_ranks(lambda rank: math.main(two), tmp_path / "ranks") == [0, 0]
    both = (
        sorted(
            one["prompt"]
            for path in (tmp_path / name).glob("*.parquet")
            for one in parquet.read_table(path).to_pylist()
        )
        for name in ("one", "two")
    )
    assert next(both) == next(both)


def test_it_goes_on_with_three_ranks(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "whole", tmp_path / "run")
    more = ["--resume", "--trainer.max_epochs=4", "--trainer.devices=3"]
    ended = on_ranks(lambda _: train(tmp_path / "run", *more, best_in=runs / "whole"), tmp_path / "ranks", ranks=3)
    assert ended == [0] * 3
    assert len(summary(tmp_path / "run")["iterations"]) == 4
    names = {f"__{rank}_0.distcp" for rank in range(3)}
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    assert {path.name for path in newest.iterdir()} == {*names, ".metadata", "meta.pt"}


def test_a_run_stays_whole_or_in_parts(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(runs / "whole", "--resume", "--trainer.max_epochs=4", "--trainer.strategy=ddp") == 2
    assert "use --trainer.strategy fsdp2" in capsys.readouterr().err


def test_other_strategies_and_what_does_not_go_with_it_are_refused_before_work_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, told in (
        (["--trainer.strategy=fsdp"], "error: trainer.strategy = 'fsdp': "),
        (["--trainer.strategy=lightning.pytorch.strategies.FSDPStrategy"], "trainer.strategy = 'FSDPStrategy': "),
        (["--trainer.strategy=deepspeed_stage_3"], "error: trainer.strategy = 'deepspeed_stage_3': "),
        (["--engine=compiled"], "error: engine = 'compiled': "),
        (["--models.compile_layers=true"], "error: models.compile_layers = True: "),
    ):
        assert train(tmp_path / "refused", *words) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()
