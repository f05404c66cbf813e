"""What two ranks' answers have in common is told from the answers of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from launch import RANKS, on_ranks

from ippo.callbacks.influence.selecting import select_together
from ippo.influence import PositiveProbe, Uniform

CUT = 100  # of 256 rows the first rank holds so many


def selected(place: slice) -> dict[str, Any]:
    """Two buffers, one after another, so that what is remembered counts as well."""
    rule, kept = PositiveProbe(), []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        kind = torch.rand(256, generator=generator) < 0.3
        positive = torch.rand(256, generator=generator) < torch.where(kind, 0.45, 0.85)
        features = torch.randn(256, 8, generator=generator) + kind.float().unsqueeze(1)
        batch = {"rewards": torch.ones(256)[place], "features": features[place]}
        found, own = select_together(torch.where(positive, 1.0, -1.0)[place], batch, rule, Uniform())
        kept.append(found.kept)
    return {"kept": torch.stack(kept), "own": found.kept[own], "signs": rule.state_dict()["agrees"]}


def test_two_ranks_keep_what_one_would(tmp_path: Path) -> None:
    def on_rank(rank: int) -> dict[str, Any]:
        dist.init_process_group("gloo", rank=rank, world_size=RANKS)
        return selected((slice(0, CUT), slice(CUT, 256))[rank])

    alone = selected(slice(0, 256))
    assert 0.3 < alone["kept"].float().mean() < 0.8
    ranks = on_ranks(on_rank, tmp_path)
    for found in ranks:
        assert torch.equal(found["kept"], alone["kept"])
        assert torch.equal(found["signs"], alone["signs"])
    assert torch.equal(torch.cat([found["own"] for found in ranks]), alone["kept"][1])
