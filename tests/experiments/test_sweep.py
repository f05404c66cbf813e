"""A comparison at each of several values of an option, from end to end, very small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_process import cells_in_process
from small_recipe import SMALL

from ippo.experiments.compare import main
from ippo.experiments.comparison import cells

ARMS = ("ppo", "random")
SWEEP = ["--arms", *ARMS, "--seeds", "0", "1", "--along", "embedded.verifier_error", "0", "1", "--jobs", "2", *SMALL]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPPO_CACHE", str(tmp_path_factory.getbasetemp() / "compare-cache"))
        with cells_in_process(at_a_time=2):
            assert main([*SWEEP, "--out", str(path)]) == 0
    return path


def figures(out: Path, value: str, arm: str, name: str) -> list[float]:
    results = json.loads((out / f"embedded.verifier_error={value}" / "results.json").read_text())
    return [run[name] for run in results["runs"][arm]]


def row(page: str, figure: str, label: str) -> list[str]:
    section = page.split(f"## {figure}\n")[1]
    return next(line for line in section.splitlines() if line.startswith(f"| {label} |")).strip("| ").split(" | ")


def test_each_value_is_a_comparison_of_its_own(out: Path) -> None:
    for value in ("0", "1"):
        config = (out / f"embedded.verifier_error={value}" / "ppo-seed1" / "config.yaml").read_text()
        assert f"verifier_error: {float(value)}" in config
        assert (out / f"embedded.verifier_error={value}" / "report.md").exists()


def test_the_page_holds_their_means_and_paired_differences(out: Path) -> None:
    page = (out / "sweep.md").read_text()
    for value, own, other in zip(
        ("0", "1"), row(page, "EM", "plain PPO")[1:], row(page, "EM", "random drop, same number")[1:], strict=True
    ):
        ppo, random = (figures(out, value, arm, "EM") for arm in ARMS)
        assert own == f"{np.mean(ppo):.3f}"
        assert other.startswith(f"{np.mean(random):.3f} ({np.mean(random) - np.mean(ppo):+.3f} [")
    tokens = np.mean(figures(out, "1", "ppo", "update tokens"))
    assert row(page, "update tokens", "plain PPO")[2] == f"{tokens:,.0f}"
    assert "(embedded.verifier_error=1/report.md)" in page
    assert (out / "sweep.png").stat().st_size > 10_000


def test_run_again_it_runs_nothing_and_says_the_same(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished cell was run again")

    monkeypatch.setattr(cells.subprocess, "run", never)
    page = (out / "sweep.md").read_text()
    (out / "sweep.md").unlink()
    assert main([*SWEEP, "--out", str(out)]) == 0
    assert (out / "sweep.md").read_text() == page
    shown = capsys.readouterr().out
    assert "EM along embedded.verifier_error" in shown
    assert f"{np.mean(figures(out, '0', 'random', 'EM')):.3f}" in shown


@pytest.mark.parametrize(
    ("along", "message"),
    [
        (["ppo.lam"], "two values of it or more"),
        (["ppo.lam", "0.5", "0.5"], "each once"),
        (["ppo.lam", "0.5", "3"], "ppo.lam = 3.0"),
        (["nonsense", "1", "2"], "nonsense"),
        (["seed_everything", "1", "2"], "leave it out"),
    ],
)
def test_refuses_what_is_wrong_before_the_first_run(
    along: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path / "out"), "--along", *along]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
