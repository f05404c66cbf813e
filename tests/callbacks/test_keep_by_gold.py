"""Which keep rule a filter of batches takes by itself, and what it does in a real fit."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from parts import MakeTrainer, plainly
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ippo.callbacks import InfluenceFilterCallback
from ippo.errors import UsageError
from ippo.influence import (
    BufferDirection,
    KeepRule,
    LikeGold,
    LookaheadScorer,
    PositiveScore,
    RandomProjectionScorer,
    ValidationDirection,
)


class Centre(L.LightningModule):
    """Moves a point towards the rows from far away, so that all rows share most of their gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Linear(1, 2, bias=False)
        nn.init.constant_(self.point.weight, 100.0)
        self.seen: list[int] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.seen += batch[1].tolist()
        return losses(self, batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-4)


def losses(module: Any, batch: list[Tensor]) -> Tensor:
    return (module.point(torch.ones(len(batch[0]), 1)) - batch[0]).square().sum(1) / 2


def rows(n: int, seed: int) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


def numbered(data: Tensor) -> DataLoader:
    return DataLoader(TensorDataset(data, torch.arange(len(data))), batch_size=20)


def gold(n: int = 39) -> DataLoader:
    return numbered(rows(n, 1))


def fitted(make_trainer: MakeTrainer, data: Tensor, **options: Any) -> tuple[InfluenceFilterCallback, list[int]]:
    settings = {"losses": losses, "direction": ValidationDirection(gold(), losses), **options}
    callback, module = InfluenceFilterCallback(unit="batch", **settings), Centre()
    make_trainer(callback).fit(module, numbered(data))
    return callback, module.seen


def test_rows_that_share_most_of_their_gradient_are_parted_all_the_same(make_trainer: MakeTrainer) -> None:
    """Every row pulls towards the origin, wrong ones less: by its sign none would go."""
    data = rows(40, 2)
    data[::4] += 20
    wrong = set(range(0, 40, 4))
    assert wrong < set(fitted(make_trainer, data, keep=PositiveScore())[1])
    seen = set(fitted(make_trainer, data)[1])
    assert not seen & wrong
    assert len(seen) >= 26  # of 30 right ones


@pytest.mark.parametrize("every", [1, 4])
def test_on_clean_data_next_to_nothing_goes(make_trainer: MakeTrainer, every: int) -> None:
    assert len(fitted(make_trainer, rows(400, 2), direction_every_n_batches=every)[1]) >= 360


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, LikeGold),
        ({"scorer": RandomProjectionScorer(4)}, LikeGold),
        ({"keep": PositiveScore()}, PositiveScore),
        ({"scorer": LookaheadScorer()}, PositiveScore),  # it leaves no row out of a direction
        ({"direction": BufferDirection()}, PositiveScore),
        (
            {"direction": ValidationDirection(gold(), lambda m, b: losses(m, b))},
            PositiveScore,
        ),  # another loss, it seems
        ({"direction": {"point.weight": torch.ones(2, 1)}}, PositiveScore),
    ],
    ids=plainly,
)
def test_the_default(make_trainer: MakeTrainer, options: Any, expected: type[KeepRule]) -> None:
    assert type(fitted(make_trainer, rows(20, 2), **options)[0].keep) is expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": BufferDirection()}, "pass direction=ValidationDirection"),
        ({"scorer": LookaheadScorer()}, "LookaheadScorer cannot leave a row out"),
        ({"direction": ValidationDirection(gold(), lambda m, b: losses(m, b))}, "the same function as losses="),
        ({"direction": ValidationDirection(gold(18), losses)}, "LikeGold with 18 gold rows"),
    ],
    ids=plainly,
)
def test_what_cannot_be_compared_is_refused_before_the_first_step(
    make_trainer: MakeTrainer, options: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        fitted(make_trainer, rows(20, 2), keep=LikeGold(), **options)


def test_a_filter_goes_on_when_a_part_is_thawed(make_trainer: MakeTrainer) -> None:
    class Thawing(Centre):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Linear(2, 2).requires_grad_(False)

        def on_train_epoch_start(self) -> None:
            self.scale.requires_grad_(self.current_epoch == 1)

    def shifted(module: Any, batch: list[Tensor]) -> Tensor:
        return losses(module, [module.scale(batch[0])])

    module = Thawing()
    callback = InfluenceFilterCallback(
        losses=shifted, direction=ValidationDirection(gold(), shifted), unit="batch", direction_every_n_batches=9
    )
    make_trainer(callback, max_epochs=2).fit(module, numbered(rows(40, 2)))
    assert callback.batches == 4
