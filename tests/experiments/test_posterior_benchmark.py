"""``benchmarks/posterior.py`` on episodes whose truth is known."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from ippo.rollout.episodes import write_parquet


@pytest.fixture(scope="module")
def benchmark() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "posterior.py"))


def episodes() -> dict[str, torch.Tensor]:
    """Forty right answers, thirty of them rewarded, and forty wrong ones, ten of them; the kinds lie far apart."""
    right = torch.arange(80) < 40
    rewarded = torch.where(right, torch.arange(80) % 4 > 0, torch.arange(80) % 4 == 0)
    aligned = torch.where(right, 4.0, -4.0) + (torch.arange(80) % 5 - 2) / 10
    return {"scores": aligned * (rewarded.float() - 0.5), "rewarded": rewarded, "right": right}


def test_figures_by_hand(benchmark: dict[str, Any]) -> None:
    wrong, estimated, *aucs, prior, sign, mixture, posterior = benchmark["looked_at"](**episodes())
    assert wrong == 0.25
    assert estimated == pytest.approx(0.25, abs=1e-3)
    assert aucs == pytest.approx([1.0] * 3)
    assert prior == 0.1875
    assert sign == 0.0
    assert mixture == pytest.approx(0.0, abs=1e-6)
    # at a ratio of 4 the odds of 3 become 12 for the right ones, and 3/4 for the wrong ones
    assert posterior == pytest.approx(0.75 * (1 / 13) ** 2 + 0.25 * (3 / 7) ** 2, abs=1e-3)


def test_a_row_for_each_kind_of_run(tmp_path: Path, benchmark: dict[str, Any]) -> None:
    known = episodes()
    columns = {
        "reward": known["rewarded"].float().tolist(),
        "score": known["scores"].tolist(),
        "correct": known["right"].tolist(),
        "chain": ["faithful" if one else "wrong" for one in known["right"].tolist()],
        "kept": [True] * 80,
        "weight": [1.0] * 80,
    }
    folders = [tmp_path / f"hole={kind}" / "seed0" for kind in ("round", "large")]
    for folder in folders:
        (folder / "episodes").mkdir(parents=True)
        for iteration in range(5):
            file = folder / "episodes" / f"iteration-{iteration:05d}-rank-00.parquet"
            write_parquet({"iteration": [iteration] * 80, **columns}, file)
    rows = benchmark["rows"](folders, every=2)
    assert [row[:5] for row in rows] == [[kind, "3", "0", "0.25", "0.25"] for kind in ("round", "large")]
