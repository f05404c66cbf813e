"""The comparison from end to end, very small, and its numbers against an independent reference."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from in_process import cells_forked, cells_in_process, fork
from pyarrow import parquet
from scipy import stats
from small_recipe import SMALL

from ippo.errors import UsageError
from ippo.experiments.compare import main
from ippo.experiments.comparison import cells
from ippo.experiments.comparison.arms import Arm, find, known
from ippo.experiments.comparison.cells import Cell
from ippo.experiments.comparison.statistics import FIGURES, common_budget, interval, within
from ippo.recipes.math import main as recipe


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPPO_CACHE", str(tmp_path_factory.getbasetemp() / "compare-cache"))


def run(tmp_path: Path, *more: str) -> int:
    return main(["--arms", "ppo", "random", "--seeds", "0", "1", "--jobs", "2", "--out", str(tmp_path), *SMALL, *more])


def test_runs_each_cell_once_and_reports_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with cells_in_process(at_a_time=2):
        assert run(tmp_path) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    ems = {
        arm: [json.loads((tmp_path / f"{arm}-seed{seed}/summary.json").read_text())["trained"]["em"] for seed in (0, 1)]
        for arm in ("ppo", "random")
    }
    assert [[one["EM"] for one in results["runs"][arm]] for arm in ems] == list(ems.values())
    mean = results["differences"]["random"]["EM"][0]
    assert mean == pytest.approx(np.mean(ems["random"]) - np.mean(ems["ppo"]))
    report = (tmp_path / "report.md").read_text()
    assert "| random drop, same number |" in report
    assert "## At equal cost" in report
    shown = [line for line in capsys.readouterr().out.splitlines() if "random drop" in line]
    assert f"{np.mean(ems['random']):.3f}" in shown[0]
    assert (tmp_path / "curves.png").stat().st_size > 10_000

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished cell was run again")

    with monkeypatch.context() as patch:
        patch.setattr(cells.subprocess, "run", never)
        (tmp_path / "report.md").unlink()
        assert run(tmp_path) == 0
        assert (tmp_path / "report.md").read_text() == report
    assert run(tmp_path, "--ppo.lam", "0.5") == 2  # else runs with other options would pass for these
    assert "name another --out" in capsys.readouterr().err


def test_a_cell_is_its_options_and_not_the_comments_of_the_arms_file(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("# one name\nfilter: none\n")
    cell = Cell(Arm("mine", mine), 0, tmp_path / "out")
    cell.folder.mkdir(parents=True)
    (cell.folder / "cell.json").write_text(json.dumps(cell._identity))
    (cell.folder / "summary.json").write_text('{"interrupted": false}')
    mine.write_text("# another name\nfilter: none\n")
    assert cell.finished() is not None
    mine.write_text("# another name\nfilter: uniform\n")
    with pytest.raises(UsageError, match=r"the arm's file has changed"):
        cell.finished()


def test_tunes_every_arm_over_the_same_rates_on_seeds_of_its_own(tmp_path: Path) -> None:
    words = ["--arms", "ppo", "--seeds", "0", "--tuning_seeds", "7", "--learning_rates", "1e-5", "1e-2"]
    with cells_in_process(at_a_time=1):
        assert main([*words, "--out", str(tmp_path), *SMALL, "--trainer.max_epochs=1"]) == 0
    rates = json.loads((tmp_path / "results.json").read_text())["rates"]["ppo"]
    assert list(rates) == ["1e-05", "0.01"]
    best = max(rates, key=rates.get)
    assert (tmp_path / f"ppo-seed0-lr{best}" / "summary.json").exists()
    assert len(list((tmp_path / "tuning").iterdir())) == 2


def test_a_run_that_fails_is_told_with_what_it_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--arms", "ppo", "--seeds", "0", "--out", str(tmp_path), *SMALL]
    assert main([*words, "--sampling.max_new_tokens=100000"]) == 1  # known to be wrong only with the tokenizer at hand
    assert "max_new_tokens" in capsys.readouterr().err


def test_ctrl_c_ends_it_and_a_run_that_was_interrupted_does_not_pass_for_a_whole_one(tmp_path: Path) -> None:
    iterations = 30
    long = [f"--trainer.max_epochs={iterations}", "--trainer.limit_val_batches=0"]
    words = ["--arms", "ppo", "--seeds", "0", "--out", str(tmp_path), *SMALL, *long]

    def in_a_terminal() -> int:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with cells_forked(tmp_path / "cell.txt"):
            return main(words)

    started = fork(in_a_terminal, tmp_path / "comparison.txt")
    while not list(tmp_path.glob("ppo-seed0/episodes/*.parquet")) and psutil.Process(started).status() != "zombie":
        time.sleep(0.01)
    os.killpg(started, signal.SIGINT)  # as a terminal does: the comparison and its runs
    _, status = os.waitpid(started, 0)
    said = (tmp_path / "comparison.txt").read_text().splitlines()
    assert (os.waitstatus_to_exitcode(status), said[-1]) == (130, "interrupted: the same command goes on from here")
    shorter = json.loads((tmp_path / "ppo-seed0/summary.json").read_text())
    assert 0 < len(shorter["iterations"]) < iterations

    with cells_in_process(at_a_time=1):
        assert main(words) == 0
    (whole,) = json.loads((tmp_path / "results.json").read_text())["runs"]["ppo"]
    assert whole["stopped_by"] == "max_epochs"
    assert len(json.loads((tmp_path / "ppo-seed0/summary.json").read_text())["iterations"]) == iterations


def test_a_run_that_is_terminated_is_told_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(psutil.Process().children())

    def terminate() -> None:
        while not list(tmp_path.glob("ppo-seed0/episodes/*.parquet")):
            time.sleep(0.01)
        (run,) = set(psutil.Process().children()) - before
        run.terminate()

    pressing = threading.Thread(target=terminate)
    pressing.start()
    words = ["--arms", "ppo", "--seeds", "0", "--out", str(tmp_path), *SMALL, "--trainer.max_epochs=150"]
    with cells_forked(tmp_path / "cell.txt"):
        assert main(words) == 1
    pressing.join()
    assert "ppo-seed0 was interrupted: the same command goes on with it" in capsys.readouterr().err
    assert not (tmp_path / "report.md").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--arms", "nonsense"], "arms = 'nonsense'"),
        (["--arms", "ppo", "ppo"], "name each of them once"),
        (["--seeds", "1", "1"], "name each of them once"),
        (["--base", "iif"], "base = 'iif'"),
        (["--jobs", "0"], "jobs = 0"),
        (["--seeds", "3", "--tuning_seeds", "3", "--learning_rates", "1e-4"], "among the reported seeds"),
        (["--seed_everything", "3"], "leave it out"),
        (["--ppo.lam=3"], "ppo.lam = 3.0"),
        (["--nonsense", "3"], "nonsense"),
    ],
)
def test_refuses_what_is_wrong_before_the_first_run(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", known())
def test_every_arm_trains(name: str, tmp_path: Path) -> None:
    cell = Cell(find(name), 0, tmp_path)
    place = f"--trainer.default_root_dir={tmp_path / name}"
    assert recipe([*cell.arguments, *SMALL, "--trainer.max_epochs=1", "--ppo.samples_per_prompt=4", place]) == 0
    iteration = json.loads((tmp_path / name / "summary.json").read_text())["iterations"][0]
    filtered = name not in ("ppo", "ppo_kl", "ppo_ptx", "ppo_ptx_linear", "sft_gold", "grpo", "rloo")
    assert (iteration["seconds"]["scoring"] > 0) == filtered
    if name == "pods":
        assert iteration["kept_fraction"] == 0.5
    if name == "dtv_loo":
        assert iteration["kept_fraction"] >= 0.25


def test_the_interval_is_the_expanded_percentile_bootstrap() -> None:
    values = np.random.default_rng(3).normal(0.1, 0.2, 12)
    mean, low, high = interval(values)
    level = 1 - 2 * stats.norm.cdf(-((12 / 11) ** 0.5) * 2.200985)  # t of 11 degrees of freedom, from a table
    means = np.random.default_rng(1).choice(values, (20_000, 12)).mean(axis=1)
    reference = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx(reference, abs=0.01)
    means = np.random.default_rng(0).choice(values, (10_000, 12)).mean(axis=1)  # the draws of the published figures
    assert (low, high) == pytest.approx(np.quantile(means, [(1 - level) / 2, (1 + level) / 2]), abs=1e-6)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_intervals_of_few_seeds_hold_the_truth_as_often_as_they_say(seeds: int) -> None:
    drawn = np.random.default_rng(0).normal(size=(500, seeds))
    ends = [interval(values, draws=2000)[1:] for values in drawn]
    assert np.mean([low <= 0.0 <= high for low, high in ends]) > 0.90  # plain percentiles of five: 0.84


def test_figures_and_budgets_by_hand() -> None:
    def iteration(em: float, tokens: int, seconds: float, kept: float) -> dict[str, Any]:
        phases = {"rollout": seconds, "scoring": 0.5, "update": 1.0}
        return {
            "em": em,
            "update_tokens": tokens,
            "seconds": phases,
            "kept_fraction": kept,
            "effective_sample_size": kept / 2,
        }

    judged = {"em": 0.5, "em_greedy": 0.7, "mv": 0.6, "pass_at_k": 0.9, "false_positive": None}
    judged |= {"hacked": 0.25, "reward": 0.75}
    run = {"trained": judged, "iterations": [iteration(0.1, 100, 2.5, 1.0), iteration(0.3, 50, 0.5, 0.5)]}
    found = {name: figure(run) for name, figure in FIGURES.items()}
    assert found == {
        "EM": 0.5,
        "greedy EM": 0.7,
        "MV": 0.6,
        "Pass": 0.9,
        "unfaithful": 0.0,
        "hacked": 0.25,
        "reward": 0.75,
        "iterations": 2,
        "update tokens": 150,
        "rollout s": 3.0,
        "scoring s": 1.0,
        "update s": 2.0,
        "kept": 0.75,
        "effective sample": 0.375,
    }
    other = {**run, "iterations": [iteration(0.2, 60, 9.0, 1.0)]}
    assert common_budget([run, other], "tokens") == 60
    assert common_budget([run, other], "seconds") == 6.0  # 2.5 + 0.5 + 1 and 0.5 + 0.5 + 1
    assert within(run, 99, "tokens") == pytest.approx(0.1)  # the first update is not paid for, its rollout is
    assert within(run, 100, "tokens") == pytest.approx(0.2)
    assert within(run, 100, "tokens", last=1) == pytest.approx(0.3)


def test_the_arm_that_only_scores_trains_as_plain_ppo(tmp_path: Path) -> None:
    """Up to rounding: the pass that scores takes the old log-probabilities as well, by forward mode."""
    arms = ["--arms", "ppo", "scores_default", "--seeds", "0", "--jobs", "1", "--out", str(tmp_path)]
    with cells_in_process(at_a_time=1):
        assert main([*arms, *SMALL, "--embedded.verifier_hole", "short"]) == 0
    plain, scored = (
        torch.load(next((tmp_path / f"{arm}-seed0" / "checkpoints").glob("*.ckpt")), weights_only=True)["state_dict"]
        for arm in ("ppo", "scores_default")
    )
    torch.testing.assert_close(scored, plain, rtol=0.0, atol=1e-5)
    texts = [
        parquet.read_table(tmp_path / f"{arm}-seed0" / "episodes")["response"].to_pylist()
        for arm in ("ppo", "scores_default")
    ]
    assert texts[0] == texts[1]
