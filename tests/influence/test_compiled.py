"""What torch compiles is scored as it was written, in every form in which people compile."""

from __future__ import annotations

import copy
from typing import Any

import lightning as L
import pytest
import torch
from parts import MakeTrainer
from small_modules import assert_same, plain_scores, random_direction, squares
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ippo.callbacks import InfluenceFilterCallback
from ippo.influence import ExactScorer, RandomProjectionScorer, Scorer, TracInScorer, score_and_backward

KINDS = ("auto", "jvp", "ghost", "loop", "fd", "tracin", "projection", "fused")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner: Any = nn.Linear(5, 4)
        self.outer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(x)))


class Compiler:
    """Runs each graph as it is, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward


def compiled(module: nn.Module, how: str, compiler: Compiler) -> Any:
    twin: Any = copy.deepcopy(module)
    if how == "in place":
        twin.compile(backend=compiler)
    elif how == "a part":
        twin.inner = torch.compile(twin.inner, backend=compiler)
    else:
        twin = torch.compile(twin, backend=compiler)
    return twin


def score_by(kind: str, module: nn.Module, batch: Tensor, direction: dict[str, Tensor]) -> Tensor:
    if kind == "fused":
        return score_and_backward(module, squares, batch, direction, torch.ones_like)
    scorers: dict[str, Scorer] = {"tracin": TracInScorer(), "projection": RandomProjectionScorer(rank=64)}
    scorer = scorers[kind] if kind in scorers else ExactScorer(kind)  # type: ignore[arg-type]
    return scorer.score(module, squares, [batch], direction)


@pytest.mark.parametrize("how", ["a part", "in place", "the whole"])
def test_scores_are_those_of_the_plain_module_and_it_stays_compiled(how: str) -> None:
    module, batch = Net(), torch.randn(3, 5)
    direction, compiler = random_direction(module), Compiler()
    expected = plain_scores(module, batch, direction)
    twin = compiled(module, how, compiler)
    along = dict(zip((name for name, _ in twin.named_parameters()), direction.values(), strict=True))
    for kind in KINDS:
        assert_same(score_by(kind, twin, batch, along), expected, 1e-3 if kind == "fd" else 1e-5)
    assert compiler.graphs == 0
    assert torch.equal(twin(batch), module(batch))
    assert compiler.graphs == 1
    assert_same(score_by("auto", twin, batch, along), expected)
    twin(batch)
    assert compiler.graphs == 1  # nothing that scoring left behind makes it compile again


def test_a_module_that_compiles_itself_for_training_is_filtered(make_trainer: MakeTrainer) -> None:
    class Net(L.LightningModule):
        def __init__(self, compiler: Compiler) -> None:
            super().__init__()
            self.net: Any = nn.Linear(2, 1)
            self.compiler, self.rows = compiler, 0

        def setup(self, stage: str) -> None:
            self.net = torch.compile(self.net, backend=self.compiler)

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.rows += len(batch)
            return self.net(batch).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.01)

    def losses(module: Any, batch: Tensor) -> Tensor:
        return module.net(batch).square().squeeze(-1)

    module = Net(Compiler())
    rows = torch.cat([torch.ones(8, 2), -torch.ones(8, 2)])
    make_trainer(InfluenceFilterCallback(unit="batch", losses=losses)).fit(module, DataLoader(rows, batch_size=4))  # type: ignore[arg-type]
    assert 0 < module.rows <= len(rows)
    assert module.compiler.graphs > 0
