"""The filter on the batches of any LightningModule whose network ranks hold in parts: it decides as with DDP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from launch import DDP, RANKS, on_ranks
from lightning.pytorch.strategies import ModelParallelStrategy
from parts import MakeTrainer, Recorder, state
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset
from training import distance

from ippo.callbacks import InfluenceFilterCallback
from ippo.distributed import whole
from ippo.influence import LikeGold, TopFraction, ValidationDirection


class Classifier(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 17), nn.ReLU(), nn.Linear(17, 3))

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def losses(self, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1], reduction="none")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.losses(batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def rows(count: int, wrong: int) -> TensorDataset:
    """Of three classes that are far apart; every so manieth has a wrong label."""
    labels = torch.arange(count) % 3
    inputs = nn.functional.one_hot(labels, 5) * 4.0 + torch.randn(count, 5)
    return TensorDataset(inputs, torch.where(torch.arange(count) % wrong == 0, (labels + 1) % 3, labels))


def filters() -> list[Callable[[], InfluenceFilterCallback]]:
    losses: Any = Classifier.losses
    gold = DataLoader(rows(40, wrong=99), batch_size=20)
    options: dict[str, Any] = {"unit": "batch", "losses": losses, "min_survival": 0.0}
    return [
        lambda: InfluenceFilterCallback(
            keep=LikeGold(), direction=ValidationDirection(gold, losses), direction_every_n_batches=3, **options
        ),
        lambda: InfluenceFilterCallback(keep=TopFraction(0.5), **options),
    ]


def test_batches_are_filtered_as_with_ddp(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    torch.manual_seed(0)
    data, makers = rows(96, wrong=4), filters()

    def fit(make: Callable[[], L.Callback], strategy: dict[str, Any]) -> dict[str, Any]:
        torch.manual_seed(1)
        module, recorder = Classifier(), Recorder()
        make_trainer(make(), recorder, max_epochs=2, accumulate_grad_batches=2, **strategy).fit(
            module, DataLoader(data, batch_size=16)
        )
        sharded = all(isinstance(parameter, DTensor) for parameter in module.parameters())
        kept = [curves["influence/kept_fraction"] for curves in recorder.curves]
        weights = {name: whole(value) for name, value in state(module).items()}
        return {"kept": kept, "weights": weights, "sharded": sharded}

    def run(rank: int) -> list[dict[str, Any]]:
        strategies = (lambda: DDP, lambda: {**DDP, "strategy": ModelParallelStrategy(RANKS, 1)})
        return [fit(make, strategy()) for make in makers for strategy in strategies]

    for rank in on_ranks(run, tmp_path):
        for replicated, sharded in zip(rank[::2], rank[1::2], strict=True):
            assert sharded["sharded"]
            assert not replicated["sharded"]
            assert sharded["kept"] == replicated["kept"]
            assert min(sharded["kept"]) < 1.0
            assert distance(sharded["weights"], replicated["weights"]) < 1e-5
