"""Small modules, and their gradients worked out the slow way, one plain backward an episode: without code of ippo's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Losses = Callable[[nn.Module, Any], Tensor]


def squares(module: nn.Module, batch: Tensor) -> Tensor:
    return module(batch).square().flatten(1).mean(1)


def halves(module: nn.Module, x: Tensor) -> Tensor:
    """(w x) ** 2 / 2, whose gradient is w x ** 2."""
    return (module(x) ** 2 / 2).flatten()


def weight_of(value: float) -> nn.Linear:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, value)
    return module


def random_direction(module: nn.Module) -> dict[str, Tensor]:
    return {name: torch.randn_like(p) for name, p in module.named_parameters() if p.requires_grad}


def plain_gradients(module: nn.Module, batch: Tensor, losses: Losses = squares) -> dict[str, Tensor]:
    """[n, *shape] by parameter: one plain backward for each episode, which is alone in its batch."""
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    rows = []
    for row in batch.split(1):
        found = torch.autograd.grad(losses(module, row).sum(), list(parameters.values()), allow_unused=True)
        rows.append([torch.zeros_like(p) if g is None else g for p, g in zip(parameters.values(), found, strict=True)])
    return {name: torch.stack([row[place] for row in rows]) for place, name in enumerate(parameters)}


def dots(gradients: Mapping[str, Tensor], direction: Mapping[str, Tensor], names: Iterable[str] = ()) -> Tensor:
    """[n] over the parameters named, or all."""
    chosen = list(names) or list(gradients)
    rows = len(gradients[chosen[0]])
    return torch.stack([(gradients[name] * direction[name]).reshape(rows, -1).sum(1) for name in chosen]).sum(0)


def plain_scores(module: nn.Module, batch: Tensor, direction: Mapping[str, Tensor], losses: Losses = squares) -> Tensor:
    return dots(plain_gradients(module, batch, losses), direction)


def assert_same(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert (expected != 0).any()
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


class Flattened(nn.Module):
    """Runs its layer over episodes and tokens at once."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.head(x.flatten(0, 1))).view(*x.shape[:2], 2)


class Recurrent(nn.Module):
    """Holds a layer that returns a tuple."""

    def __init__(self, kind: type[nn.GRU] | type[nn.LSTM] = nn.GRU) -> None:
        super().__init__()
        self.cell = kind(3, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0]


class Shifted(nn.Module):
    """Takes a table that belongs to no episode beside its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return torch.tanh(x * self.scale + table)


class WithTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.shifted = nn.Linear(3, 4), Shifted()

    def forward(self, x: Tensor) -> Tensor:
        return self.shifted(self.inputs(x), torch.linspace(-1, 1, x.shape[1] * 4).view(-1, 4))
