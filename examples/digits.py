"""Image classification with wrong labels: plain automatic optimisation, and one callback that finds them.

    python examples/digits.py                  # the filter
    python examples/digits.py --filter none    # without it
    python examples/digits.py --filter random  # the control: as many rows dropped, at random

scikit-learn's digits; 30 % of the training labels are wrong, 60 clean rows guide the filter.
"""

from __future__ import annotations

import argparse

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ippo.callbacks import InfluenceFilterCallback
from ippo.influence import PositiveScore, RandomMatched, ValidationDirection


class Digits(L.LightningDataModule):
    """Training rows with wrong labels, and clean ones to guide and to test by. A row's third entry is its number."""

    def __init__(self, seed: int, wrong: float = 0.3, batch_size: int = 128) -> None:
        super().__init__()
        self.batch_size = batch_size
        pixels, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        pixels, labels = pixels[order].float() / 16, labels[order].long()
        generator = torch.Generator().manual_seed(seed + 1)
        self.gold, self.test = TensorDataset(pixels[:60], labels[:60]), TensorDataset(pixels[60:560], labels[60:560])
        pixels, labels = pixels[560:], labels[560:]
        self.flipped = torch.rand(len(labels), generator=generator) < wrong
        others = (labels + torch.randint(1, 10, labels.shape, generator=generator)) % 10
        self.train = TensorDataset(pixels, torch.where(self.flipped, others, labels), torch.arange(len(labels)))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, len(self.test))


class Classifier(L.LightningModule):
    """A small network, as anyone would write it."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def test_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        self.log("test/accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)


def losses(module: Classifier, batch: tuple[Tensor, ...]) -> Tensor:
    return nn.functional.cross_entropy(module.net(batch[0]), batch[1], reduction="none")
