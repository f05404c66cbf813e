from __future__ import annotations

import pytest
from torch import nn

from ippo.influence.parameters import choose


class Block(nn.Module):
    def __init__(self, experts: int = 8) -> None:
        super().__init__()
        self.attention = nn.Linear(2, 2, bias=False)
        self.experts = nn.ModuleList([nn.Linear(2, 2, bias=False) for _ in range(experts)])


class Model(nn.Module):
    def __init__(self, blocks: int, heads: int = 0) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block() for _ in range(blocks)])
        self.heads = nn.ModuleList([nn.Linear(2, 1, bias=False) for _ in range(heads)])
        self.head = nn.Linear(2, 2, bias=False)


@pytest.mark.parametrize("heads", [0, 2, 30])
@pytest.mark.parametrize("blocks", [2, 4, 12])
def test_blocks_are_blocks_however_many_experts_or_heads_there_are(blocks: int, heads: int) -> None:
    last = f"layers.{blocks - 1}."
    expected = {f"{last}attention.weight", *(f"{last}experts.{place}.weight" for place in range(8)), "head.weight"}
    assert choose(Model(blocks, heads), 1) == expected | {f"heads.{place}.weight" for place in range(heads)}


def test_parts_of_several_kinds_are_no_blocks() -> None:
    parts = nn.ModuleList([Model(3), nn.Linear(99, 99)])
    assert min(choose(nn.ModuleDict({"parts": parts}), 1)).startswith("parts.0.head")
    assert any(name.startswith("parts.0.layers.2.") for name in choose(nn.ModuleDict({"parts": parts}), 1))
    assert not any(name.startswith("parts.0.layers.1.") for name in choose(nn.ModuleDict({"parts": parts}), 1))
