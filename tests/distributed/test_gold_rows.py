"""Which gold rows count, where several ranks read some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from launch import RANKS, on_ranks
from torch import Tensor, nn

from ippo.influence import ExactScorer
from ippo.influence.keep_like_gold import look_at_gold

ROWS = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def losses(module: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(module(batch[0]), batch[1], reduction="none")


def looked_at(rows: slice | list[int]) -> dict[str, Any]:
    torch.manual_seed(0)
    gold = look_at_gold(nn.Linear(4, 3), ExactScorer(), losses, [(ROWS[rows], LABELS[rows])])
    return {"scores": gold.scores, "direction": dict(gold.direction)}


@pytest.mark.parametrize(
    "of_rank",
    [[slice(0, 6), slice(0, 6)], [[0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4]], [slice(0, 3), slice(3, 6)]],
    ids=["the same rows", "the same in another order", "rows of its own"],
)
def test_two_ranks_score_the_gold_rows_that_one_would(tmp_path: Path, of_rank: list[Any]) -> None:
    """As DistributedSampler makes them, or without it."""

    def on_rank(rank: int) -> dict[str, Any]:
        dist.init_process_group("gloo", rank=rank, world_size=RANKS)
        return looked_at(of_rank[rank])

    alone = looked_at(slice(0, 6))
    for found in on_ranks(on_rank, tmp_path):
        torch.testing.assert_close(found["scores"], alone["scores"])
        torch.testing.assert_close(found["direction"], alone["direction"])
