"""Losses and directions as people pass them: what is wrong is told in one line that says what to write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_modules import random_direction, squares
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ippo.errors import UsageError
from ippo.influence import ExactScorer, ValidationDirection


def without_graph(module: nn.Module, batch: Tensor) -> Tensor:
    with torch.no_grad():
        return squares(module, batch)


@torch.inference_mode()
def in_inference_mode(module: nn.Module, batch: Tensor) -> Tensor:
    return squares(module, batch)


WRONG: dict[str, tuple[Callable[[nn.Module, Tensor], Any], str]] = {
    "a mean": (lambda module, batch: squares(module, batch).mean(), r"a result of shape \(\).*reduction=\"none\""),
    "a column": (lambda module, batch: squares(module, batch)[:, None], r"a result of shape \(4, 1\)"),
    "a list": (lambda module, batch: squares(module, batch).tolist(), "a result of type list"),
    "under no_grad": (without_graph, "a result without a gradient.*leave no_grad"),
    "in inference mode": (in_inference_mode, "a result without a gradient.*inference_mode"),
    "detached": (lambda module, batch: squares(module, batch).detach(), "a result without a gradient.*detach"),
}


@pytest.mark.parametrize(("losses", "told"), WRONG.values(), ids=WRONG)
class TestLosses:
    @pytest.mark.parametrize("backend", ["auto", "ghost", "jvp", "loop"])
    def test_of_rows_that_are_scored(self, losses: Any, told: str, backend: Any) -> None:
        module = nn.Linear(3, 2)
        with pytest.raises(UsageError, match=f"^losses = .*{told}"):
            ExactScorer(backend).score(module, losses, [torch.randn(4, 3)], random_direction(module))

    def test_of_a_direction(self, losses: Any, told: str) -> None:
        with pytest.raises(UsageError, match=f"^loss of the direction = .*{told}"):
            ValidationDirection([torch.randn(4, 3)], losses).compute(nn.Linear(3, 2))


@pytest.mark.parametrize("backend", ["auto", "ghost", "jvp", "loop", "fd"])
def test_losses_that_are_zeros_without_a_gradient_score_zero(backend: Any) -> None:
    """As of a batch without a target."""
    module = nn.Linear(3, 2)
    scores = ExactScorer(backend).score(
        module, lambda module, batch: torch.zeros(len(batch)), [torch.randn(4, 3)], random_direction(module)
    )
    assert scores.tolist() == [0.0] * 4


@pytest.mark.parametrize(
    "direction",
    [DataLoader(TensorDataset(torch.ones(4, 3))), [torch.ones(4, 3)], ValidationDirection, squares, None],
    ids=["a loader", "batches", "a class", "a function", "none"],
)
def test_what_is_no_direction_is_told_what_to_write(direction: Any) -> None:
    with pytest.raises(UsageError, match=r"^direction = .*write ValidationDirection\(batches, loss\)"):
        ExactScorer().score(nn.Linear(3, 2), squares, [torch.ones(4, 3)], direction)


@pytest.mark.parametrize(
    ("batches", "loss", "told"),
    [
        (TensorDataset(torch.ones(4, 3)), squares, r"ValidationDirection.batches = .*DataLoader\(rows"),
        (iter([torch.ones(4, 3)]), squares, r"ValidationDirection.batches = .*a DataLoader or a list"),
        (3, squares, r"ValidationDirection.batches = 'a int'"),
        ([torch.ones(4, 3)], nn.MSELoss(), r"ValidationDirection.loss = 'a MSELoss'.*\(module, batch\)"),
        (squares, [torch.ones(4, 3)], r"ValidationDirection.loss = 'a list'"),
    ],
    ids=["rows", "an iterator", "a number", "a loss module", "the wrong way round"],
)
def test_gold_rows_that_cannot_be_read_again_and_losses_that_are_none(batches: Any, loss: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        ValidationDirection(batches, loss)
