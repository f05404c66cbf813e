"""``benchmarks/alarm.py`` on runs whose course is known."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from ippo.rollout.episodes import write_parquet

ITERATIONS = 10


@pytest.fixture(scope="module")
def benchmark() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "alarm.py"))


def write(folder: Path, hole: str, opposing: list[int], right: list[int], filter: Any = "none", seed: int = 0) -> None:
    """A run with a hundred episodes an iteration, all rewarded."""
    task = {"verifier_error": None, "verifier_errs_on": "both", "verifier_hole": hole}
    config = {"embedded": task, "trainer": {"max_epochs": ITERATIONS}, "filter": filter, "seed_everything": seed}
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for number, (against, true) in enumerate(zip(opposing, right, strict=True)):
        columns = {
            "reward": [1.0] * 100,
            "score": [-1.0] * against + [1.0] * (100 - against),
            "correct": [True] * true + [False] * (100 - true),
        }
        write_parquet(columns, folder / "episodes" / f"iteration-{number:05d}-rank-00.parquet")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    rising, falling = [30] * 5 + [80] * 5, [30, 30, 30, 40, 50, 60, 50, 30, 20, 10]
    write(root / "gamed", "short", rising, falling)
    write(root / "unseen", "short", [30] * 10, falling, seed=1)
    write(root / "harmless", "short", [30] * 10, [30] * 10, seed=2)
    write(root / "honest", "none", [30] * 10, [30] * 10)
    write(root / "acting", "none", rising, [30] * 10, filter={"init_args": {"dry_run": False}})
    write(root / "unfinished", "none", [30] * 4, [30] * 4)
    return root


def test_reads_runs_that_are_finished(benchmark: Any, places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = {run.folder.name: run for run in benchmark["find"]([places])}
    assert runs.keys() == {"gamed", "unseen", "harmless", "honest", "acting"}
    assert "left out, 4 of 10 iterations" in capsys.readouterr().out
    assert {name: (run.condition, run.gamed, run.acts) for name, run in runs.items()} == {
        "gamed": ("hole: short", True, False),
        "unseen": ("hole: short", True, False),
        "harmless": ("hole: short", True, False),
        "honest": ("25% errors", False, False),
        "acting": ("25% errors", False, True),
    }
    gamed = runs["gamed"]
    assert gamed.true_em[:2] == pytest.approx([0.3, 0.3])
    assert gamed.true_em[5] == pytest.approx((0.5 + 0.6 + 0.5) / 3)
    assert (gamed.turn, runs["harmless"].turn) == (5, None)
    assert (gamed.hacked[0], gamed.hacked[-1]) == pytest.approx((0.7, 0.9))


def test_says_how_soon_and_what_was_lost(benchmark: Any, places: Path) -> None:
    runs = benchmark["find"]([places])
    *_, row = benchmark["table_of_gamed"]([run for run in runs if run.folder.name == "gamed"])
    # Wrong from 5 on, where the true EM is highest; the alarm takes two iterations; after it the EM is 100 of 300
    assert row == "| hole: short | 0 | 70%, 50%, 90% | 0.533 (5) | 0.150 | 6 | +1 | 5 | 0.200 | 0.000 | 30% |"
    *_, row = benchmark["summary_of_gamed"]([run for run in runs if run.gamed])
    assert row == "| hole: short | 3 | 2 | 1 | 0 | 1 | +1 | 0.200 | 0.000 | 0.383 | 0 of 1 |"


def test_counts_alarms_where_nothing_is_gamed(benchmark: Any, places: Path) -> None:
    runs = benchmark["find"]([places])
    *_, row = benchmark["table_of_others"]([run for run in runs if not run.gamed and not run.acts])
    assert row == "| 25% errors | 1 | 0 | – | 0.30, 0.30 | 0.70, 0.70 |"
    *_, row = benchmark["table_of_others"]([run for run in runs if run.acts])
    assert row == "| 25% errors | 1 | 1 | 0 (6) | 0.30, 0.80 | 0.70, 0.70 |"


def test_says_how_well_scores_tell_right_from_wrong(benchmark: Any, places: Path) -> None:
    """The lowest scores are those of right answers here: in the first half 30 oppose, and 30 to 50 are right."""
    runs = benchmark["find"]([places])
    *_, row = benchmark["table_of_classes"]([run for run in runs if run.folder.name == "harmless"])
    assert row == "| hole: short | 1 | 1.00 | 0.00 | 0.00 |"
