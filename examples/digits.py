"""Image classification with wrong labels: plain automatic optimisation, and one callback that finds them.

scikit-learn's digits; 30 % of the training labels are wrong, and 60 clean rows guide the filter."""

from tempfile import mkdtemp

import lightning as L
import torch
from pyarrow import parquet
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ippo.callbacks import InfluenceFilterCallback
from ippo.influence import ExactScorer, ValidationDirection


class Digits(L.LightningDataModule):
    """Rows of pixels, label and number; ``flipped`` says which training rows have a wrong label."""

    def __init__(self, seed: int = 0, wrong: float = 0.3) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        pixels, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
        order = torch.randperm(len(labels), generator=draw)
        pixels, labels = pixels[order].float() / 16, labels[order]
        self.gold, self.test = TensorDataset(pixels[:60], labels[:60]), TensorDataset(pixels[60:560], labels[60:560])
        pixels, labels = pixels[560:], labels[560:]
        self.flipped = torch.rand(len(labels), generator=draw) < wrong
        others = (labels + torch.randint(1, 10, labels.shape, generator=draw)) % 10
        self.train = TensorDataset(pixels, torch.where(self.flipped, others, labels), torch.arange(len(labels)))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=64, shuffle=True)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, batch_size=500)


class Classifier(L.LightningModule):
    """A LightningModule as its author wrote it: nothing in it knows of the filter."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test/accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def losses(module: Classifier, batch: list[Tensor]) -> Tensor:
    return nn.functional.cross_entropy(module.net(batch[0]), batch[1], reduction="none")


if __name__ == "__main__":
    L.seed_everything(0)
    data, module, run = Digits(), Classifier(), mkdtemp()
    influence_filter = InfluenceFilterCallback(
        unit="batch",
        losses=losses,
        direction=ValidationDirection(DataLoader(data.gold, batch_size=60), losses),
        scorer=ExactScorer(parameters=r"net\.4"),  # the last layer: cheap, and enough here
        direction_every_n_batches=8,
        audit="audit",
        row_id=lambda batch: batch[2],
    )
    trainer = L.Trainer(max_epochs=40, callbacks=[influence_filter], default_root_dir=run)
    trainer.fit(module, data)
    rows = parquet.read_table(f"{run}/audit", filters=[("epoch", ">=", 20)]).to_pydict()
    kept, flipped = torch.tensor(rows["kept"]).float(), data.flipped[rows["id"]]
    shares = f"{kept[~flipped].mean():.0%} of the rows with a right label, {kept[flipped].mean():.0%} of the wrong ones"
    print(f"Kept in the second half: {shares}.")
    print(f"Test accuracy: {trainer.test(module, data, verbose=False)[0]['test/accuracy']:.3f}. TensorBoard: {run}")
