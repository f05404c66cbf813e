"""Every kept row counts the same in a step that is made of several batches, accumulated or of two ranks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from parts import GivenScores, MakeTrainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ippo.callbacks import InfluenceFilterCallback

sys.path.append(str(Path(__file__).parents[1] / "distributed"))
from launch import DDP, on_ranks

ROWS = 8
ALL, ONE, NONE = [1.0] * 4, [1.0, -1.0, -1.0, -1.0], [-1.0] * 4


class Counting(L.LightningModule):
    """Each row has a parameter of its own, whose gradient is the weight of the row in the step."""

    def __init__(self, reduction: str = "mean", weigh: bool = False) -> None:
        super().__init__()
        self.w, self.reduction, self.weigh = nn.Parameter(torch.zeros(ROWS)), reduction, weigh

    def losses(self, batch: Any) -> Tensor:
        return self.w[batch["row"]]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        losses = self.losses(batch) * (batch["weight"] if self.weigh else 1.0)
        return losses.sum() if self.reduction == "sum" else losses.mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def given(*scores: list[float], **options: Any) -> InfluenceFilterCallback:
    settings: dict[str, Any] = {"unit": "batch", "losses": Counting.losses, "direction": {"w": torch.ones(ROWS)}}
    return InfluenceFilterCallback(GivenScores(*scores), **settings, min_survival=0.0, **options)


def data(size: int = 4) -> DataLoader:
    return DataLoader([{"row": torch.tensor(row)} for row in range(ROWS)], batch_size=size)


def weights(module: Counting) -> list[float]:
    """Of the rows in the one step that was taken."""
    return (-module.w.detach()).tolist()


class TestAccumulated:
    @pytest.mark.parametrize("action", ["drop", "weight"])
    def test_as_in_one_batch_of_all_rows(self, make_trainer: MakeTrainer, action: Any) -> None:
        module, whole = (Counting(weigh=action == "weight") for _ in range(2))
        make_trainer(given(ALL, ONE, action=action), accumulate_grad_batches=2).fit(module, data())
        make_trainer(given(ALL + ONE, action=action)).fit(whole, data(8))
        assert weights(module) == pytest.approx([0.2] * 5 + [0.0] * 3)
        assert weights(module) == pytest.approx(weights(whole))

    def test_two_filters(self, make_trainer: MakeTrainer) -> None:
        module = Counting()
        second = given(ONE, [1.0], name="second")
        make_trainer(given(ALL, ONE), second, accumulate_grad_batches=2).fit(module, data())
        assert weights(module) == pytest.approx([0.5, 0, 0, 0, 0.5, 0, 0, 0])

    def test_a_batch_without_survivors(self, make_trainer: MakeTrainer) -> None:
        for scores in ((ALL, NONE), (NONE, ALL)):
            module = Counting()
            make_trainer(given(*scores), accumulate_grad_batches=2).fit(module, data())
            assert sorted(weights(module)) == pytest.approx([0.0] * 4 + [0.25] * 4)

    def test_of_batches_that_differ_in_size_rows_keep_the_proportions_that_they_had(
        self, make_trainer: MakeTrainer
    ) -> None:
        plain, filtered = Counting(), Counting()
        options: dict[str, Any] = {"accumulate_grad_batches": 2}
        make_trainer(**options).fit(plain, data(6))
        make_trainer(given([1.0] * 3 + [-1.0] * 3, [1.0, 1.0]), **options).fit(filtered, data(6))
        assert weights(plain) == pytest.approx([1 / 12] * 6 + [1 / 4] * 2)
        assert weights(filtered) == pytest.approx([1 / 9] * 3 + [0.0] * 3 + [1 / 3] * 2)

    def test_nothing_is_scaled_where_nothing_goes_and_the_next_step_starts_anew(
        self, make_trainer: MakeTrainer
    ) -> None:
        plain, filtered = Counting(), Counting()
        options: dict[str, Any] = {"accumulate_grad_batches": 2, "max_epochs": 2}
        make_trainer(**options).fit(plain, data(2))
        make_trainer(given(*[[1.0, 1.0]] * 8), **options).fit(filtered, data(2))
        assert torch.equal(plain.w, filtered.w)

    def test_a_sum_is_left_alone(self, make_trainer: MakeTrainer) -> None:
        module = Counting("sum")
        make_trainer(given(ALL, ONE, loss_reduction="sum"), accumulate_grad_batches=2).fit(module, data())
        assert weights(module) == pytest.approx([0.5] * 5 + [0.0] * 3)  # Lightning's division by two batches

    def test_gradients_are_scaled_before_they_are_clipped(self, make_trainer: MakeTrainer) -> None:
        module = Counting()
        make_trainer(given(ALL, ONE), accumulate_grad_batches=2, gradient_clip_val=0.1).fit(module, data())
        assert float(module.w.norm()) == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_ranks_as_one(tmp_path: Path, make_trainer: MakeTrainer, accumulate: int) -> None:
    scores = {1: [(ALL, ONE), (ONE, NONE)], 2: [((ALL, ALL), (ONE, NONE))]}[accumulate]

    def run(rank: int) -> list[list[float]]:
        found = []
        for one in scores:
            module = Counting()
            own: Any = one[rank] if accumulate == 2 else (one[rank],)
            options: dict[str, Any] = {**DDP, "accumulate_grad_batches": accumulate, "use_distributed_sampler": False}
            callback = given(*[[*each[: 4 // accumulate]] for each in own])
            rows = data(4 // accumulate).dataset[rank * 4 : rank * 4 + 4]  # type: ignore[index]
            make_trainer(callback, **options).fit(module, DataLoader(rows, batch_size=4 // accumulate))
            found.append(weights(module))
        return found

    expected = {1: [[0.2] * 5 + [0.0] * 3, [1.0] + [0.0] * 7], 2: [[0.2] * 5 + [0.0] * 3]}[accumulate]
    for found in on_ranks(run, tmp_path):
        for one, right in zip(found, expected, strict=True):
            assert one == pytest.approx(right)
