"""The callback from a LightningCLI project's YAML."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from lightning.pytorch.cli import LightningCLI
from pyarrow import parquet

PROJECT = """
import torch
from torch import nn
from torch.utils.data import DataLoader
import lightning as L


class Model(L.LightningModule):
    def __init__(self, width: int = 4):
        super().__init__()
        self.net = nn.Linear(2, width)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch["x"]), batch["y"])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(L.LightningDataModule):
    def rows(self, n):
        return DataLoader([{"x": torch.randn(2), "y": torch.tensor(i % 4), "id": f"row {i}"} for i in range(n)], 8)

    def train_dataloader(self):
        return self.rows(16)

    def val_dataloader(self):
        return self.rows(8)


def losses(module, batch):
    return nn.functional.cross_entropy(module.net(batch["x"]), batch["y"], reduction="none")
"""

CONFIG = """
model: {class_path: a_project.Model}
data: {class_path: a_project.Data}
trainer:
  max_epochs: 1
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: ippo.callbacks.InfluenceFilterCallback
      init_args:
        unit: batch
        losses: a_project.losses
        direction: ippo.influence.ValidationDirection
        direction_every_n_batches: 8
        direction_rows: 256
        scorer:
          class_path: ippo.influence.ExactScorer
          init_args: {backend: jvp, parameters: bias}
        keep:
          class_path: ippo.influence.PositiveScore
          init_args: {min_fraction: 0.5}
        audit: audit
        row_id: id
"""


def test_everything_but_functions_comes_from_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_project.py").write_text(PROJECT)
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ["fit", "--config", str(tmp_path / "config.yaml"), f"--trainer.default_root_dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["main.py", *arguments])
    LightningCLI(save_config_callback=None, seed_everything_default=0)
    table = parquet.read_table(tmp_path / "audit").to_pydict()
    assert table["id"] == [f"row {row}" for row in range(16)]
    assert sum(table["kept"]) >= 8
