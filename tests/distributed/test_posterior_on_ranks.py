"""What two ranks believe of their rewards is what one would of all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from launch import RANKS, on_ranks

from ippo.callbacks.influence.selecting import select_together
from ippo.influence import LikelyRight, Posterior

CUT = 100  # of 256 rows the first rank holds so many


def rows(place: slice) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    right = torch.rand(256, generator=generator) < 0.5
    paid = torch.where(torch.rand(256, generator=generator) < 0.2, ~right, right).float()
    aligned = torch.where(right, 0.5, -0.5) + torch.randn(256, generator=generator)
    scores = aligned * (paid - paid.mean())
    return scores[place], {"rewards": paid[place], "groups": (torch.arange(256) // 4)[place]}


def selected(place: slice) -> dict[str, Any]:
    scores, batch = rows(place)
    found, own = select_together(scores, batch, LikelyRight(0.7), Posterior(prompt_strength=8.0))
    return {"weights": found.weights, "own": found.weights[own], "kept": found.kept}


def test_two_ranks_weigh_as_one_does(tmp_path: Path) -> None:
    def on_rank(rank: int) -> dict[str, Any]:
        dist.init_process_group("gloo", rank=rank, world_size=RANKS)
        return selected((slice(0, CUT), slice(CUT, 256))[rank])

    alone = selected(slice(0, 256))
    assert 0 < alone["kept"].float().mean() < 1
    assert len(alone["weights"].unique()) > 50
    ranks = on_ranks(on_rank, tmp_path)
    for found in ranks:
        assert torch.equal(found["weights"], alone["weights"])
        assert torch.equal(found["kept"], alone["kept"])
    assert torch.equal(torch.cat([found["own"] for found in ranks]), alone["weights"])
