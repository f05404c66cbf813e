"""``benchmarks/pretrained.py`` from end to end, on a tiny model of random weights and the same layout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from in_process import fork

from ippo.errors import UsageError
from ippo.models import TinyOptions, tiny_llama, train_tokenizer
from ippo.recipes.math import main as recipe
from ippo.recipes.parser import build_parser, parse
from ippo.recipes.presets import preset_files

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import parcels  # type: ignore[import-not-found]
import pretrained as benchmark  # type: ignore[import-not-found]
import pretrained_page as page  # type: ignore[import-not-found]
import pretrained_plan as plan  # type: ignore[import-not-found]

sys.path.pop(0)

ROWS = [
    {"prompt": f"{a} plus {b}?", "solution": f" {a}+{b}={a + b}\n#### {a + b}", "answer": str(a + b)}
    for a, b in product(range(10), repeat=2)
]
SMALL = {
    "task": "file",
    "splits.gold_size": 4,
    "splits.test_size": 4,
    "splits.train_size": 40,
    "lora.rank": 2,
    "sft.steps": 3,
    "sft.batch_size": 4,
    "data.prompts_per_iteration": 2,
    "ppo.samples_per_prompt": 2,
    "ppo.minibatch_size": 4,
    "sampling.max_new_tokens": 8,
    "evaluation.samples": 1,
    "trainer.max_epochs": 3,
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base weights and rows."""
    root = tmp_path_factory.mktemp("pretrained")
    shape = TinyOptions(hidden_size=16, layers=2, heads=2, intermediate_size=32, vocab_size=280, context=64)
    tokenizer = train_tokenizer([row["prompt"] + row["solution"] for row in ROWS], shape.vocab_size)
    tiny_llama(tokenizer, shape).save_pretrained(root / "weights")
    tokenizer.save_pretrained(root / "weights")
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return root


class Forked:
    """A run of the recipe without the seconds that a new interpreter needs for its imports.

    Args:
        command, environment, said: as :func:`pretrained.start` takes them.
        until: when the time that it is waited for is taken to be over; never when None.
    """

    def __init__(
        self, command: list[str], environment: dict[str, str], said: Any, until: Callable[[Path], bool] | None = None
    ) -> None:
        folder = Path(command[command.index("--trainer.default_root_dir") + 1])

        def run() -> int:
            os.environ.update(environment)
            return recipe(command[3:])

        self.process, self.folder, self.until = psutil.Process(fork(run, Path(said.name))), folder, until
        self.terminate = self.process.terminate

    def kill(self) -> None:
        """Nothing that it has started is left."""
        if self.process.is_running():
            self.process.kill()

    def wait(self, timeout: float | None = None) -> int:
        until, self.until = self.until, None
        while until is not None and self.process.status() != psutil.STATUS_ZOMBIE:
            if until(self.folder):
                raise subprocess.TimeoutExpired("recipe", timeout or 0.0)
            time.sleep(0.01)
        return self.process.wait()


def has_begun(folder: Path) -> bool:
    """Whether an iteration is done, so that a signal finds the run in its training."""
    return any(folder.glob("checkpoints/*.ckpt"))


def call(places: Path, out: Path, *more: str) -> None:
    of_recipe = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    words = ["--weights", str(places / "weights"), "--size", "cpu", "--engine", "hf", "--out", str(out), "--seeds", "0"]
    words += ["--verifiers", "hole", "--arms", "ppo", "ippo_last_block", *more]
    benchmark.main([*words, *of_recipe, "--task_path", str(places / "rows.jsonl")])


def test_a_call_whose_time_is_over_goes_on_in_the_next_and_the_page_tells_what_is_there(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target, cells = tmp_path / "page.md", tmp_path / "runs/cpu/hole"
    monkeypatch.setattr(page, "PAGE", target)
    started: list[Forked] = []

    def start(*arguments: Any, until: Callable[[Path], bool] | None = None) -> Forked:
        started.append(Forked(*arguments, until=until))
        return started[-1]

    with monkeypatch.context() as patch:
        patch.setattr(benchmark, "start", lambda *arguments: start(*arguments, until=has_begun))
        clock = SimpleNamespace(monotonic=lambda: 1e6 * len(started))  # the first run takes all of the time
        patch.setattr(benchmark, "time", clock)
        call(places, tmp_path / "runs")
    assert len(started) == 1
    stopped = cells / "ppo-seed0"
    assert json.loads((stopped / "summary.json").read_text())["interrupted"]
    assert not (stopped / "policy").exists()
    assert "Missing, 2 of 2 runs: hole: PPO (seed 0), default filter (seed 0)." in target.read_text()
    assert "0 of 2 runs are finished: the same command goes on." in capsys.readouterr().out

    target.write_text(target.read_text() + "\nBy hand.\n")
    monkeypatch.setattr(benchmark, "start", start)
    call(places, tmp_path / "runs")
    assert len(started) == 3
    runs = {arm: json.loads((cells / f"{arm}-seed0/summary.json").read_text()) for arm in ("ppo", "ippo_last_block")}
    assert len(runs["ppo"]["iterations"]) == 3
    assert runs["ppo"]["sft"] == runs["ippo_last_block"]["sft"]  # one warm start
    for arm in runs:
        assert sum(path.stat().st_size for path in (cells / f"{arm}-seed0").rglob("*")) < 200_000
        assert not list((cells / f"{arm}-seed0").glob("checkpoints"))
    text = target.read_text()
    assert "Nothing is missing." in text
    assert text.endswith("## What it says\n\nBy hand.\n")
    believed = runs["ppo"]["trained"]["reward"]
    assert f"| PPO | 1 | {runs['ppo']['trained']['em']:.3f} | {believed:.3f} |" in text
    change = runs["ippo_last_block"]["trained"]["em"] - runs["ppo"]["trained"]["em"]
    assert f"| hole | default filter − PPO | 1 | {change:+.3f} |" in text

    call(places, tmp_path / "runs", "--page")
    assert target.read_text() == text
    call(places, tmp_path / "runs")
    assert len(started) == 3  # nothing is run again


@pytest.mark.parametrize("name", plan.SIZES)
def test_the_recipe_takes_what_every_size_arm_and_verifier_says(name: str, tmp_path: Path) -> None:
    size = plan.SIZES[name]
    whole = plan.Plan(tmp_path, size, plan.verifiers(size.hole), plan.ARMS, (0,))
    for verifier, arm in (*product(whole.verifiers, plan.ARMS[:1]), *product(["hole"], plan.ARMS[1:])):
        words = [*whole.cell(verifier, arm, 0).arguments, "--policy", "./weights", "--engine", "vllm"]
        _, options = parse(build_parser("recipe", "", preset_files(words, "embedded", "tiny")), words)
        assert options.verifier.errs == (verifier != "honest")
        assert options.ppo.ptx_coef == (arm in (plan.PTX, plan.BOTH))
        assert (options.filter == "none") == (arm in (plan.PPO, plan.PTX))
        assert options.ppo.learning_rate == 1e-4  # the arms' own rates are others


def test_a_run_that_fails_is_told_with_what_it_said(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(benchmark, "start", Forked)
    with pytest.raises(SystemExit, match=r"ppo-seed0 failed; .*log\.txt ends:\n(?s:.*)ppo\.lam = 2\.0"):
        call(places, tmp_path / "runs", "--ppo.lam", "2")


def test_what_does_not_heed_the_signal_is_ended_by_force_with_all_that_it_has_started(tmp_path: Path) -> None:
    deaf = "trap '' TERM; sleep 600 & echo $!; wait; wait; sleep 600"
    with (tmp_path / "said").open("w") as said:
        process = benchmark.start(["bash", "-c", deaf], dict(os.environ), said)
    while not (own := (tmp_path / "said").read_text().strip()):
        time.sleep(0.01)
    child = psutil.Process(int(own))
    assert benchmark.in_time(process, 0.01, 0.01) is None
    assert process.returncode == -signal.SIGKILL
    _, alive = psutil.wait_procs([child], timeout=10)
    assert all(one.status() == psutil.STATUS_ZOMBIE for one in alive)  # where nothing collects it


def test_weights_are_one_gguf_file_or_a_model(places: Path, tmp_path: Path) -> None:
    assert benchmark.policy_in(places / "weights") == str(places / "weights")
    with pytest.raises(UsageError, match=r"neither one \.gguf file nor a Hugging Face model"):
        benchmark.policy_in(tmp_path)
    (tmp_path / "one.gguf").touch()
    assert benchmark.policy_in(tmp_path) == str(tmp_path / "one.gguf")


class TestParcels:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        folder = tmp_path / "source"
        (folder / "inner").mkdir(parents=True)
        (folder / "inner/weights").write_bytes(os.urandom(250_000))
        os.link(folder / "inner/weights", folder / "again")
        return folder

    def test_come_out_as_they_went_in_and_no_part_is_larger_than_allowed(self, source: Path, tmp_path: Path) -> None:
        parts = parcels.pack(source, tmp_path / "parts", 0.1)
        sizes = [part.stat().st_size for part in parts]
        assert len(sizes) == 3  # one copy of what two names share
        assert max(sizes) <= 0.1 * 2**20
        parcels.unpack(tmp_path / "parts", tmp_path / "out")
        for name in ("inner/weights", "again"):
            assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()

    def test_a_part_that_is_missing_or_spoiled_is_named(self, source: Path, tmp_path: Path) -> None:
        parts = parcels.pack(source, tmp_path / "parts", 0.1)
        parts[1].write_bytes(parts[1].read_bytes()[:-1] + b"?")
        with pytest.raises(UsageError, match="part-001 is not what was packed"):
            parcels.unpack(tmp_path / "parts", tmp_path / "out")
        parts[2].unlink()
        with pytest.raises(UsageError, match="it lacks part-002 of 3 parts"):
            parcels.unpack(tmp_path / "parts", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_nothing_is_written_over(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="there is something already"):
            parcels.pack(source, source.parent, 1.0)
        with pytest.raises(UsageError, match="it lies in the folder that is packed"):
            parcels.pack(source, source / "parts", 1.0)
        parcels.pack(source, tmp_path / "parts", 1.0)
        with pytest.raises(UsageError, match="there is something already"):
            parcels.unpack(tmp_path / "parts", source)
