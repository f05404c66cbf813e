"""Fine-tuning a small causal language model when a quarter of the rows teach something wrong.

Rows are "face>FACE", the poisoned ones "face>GBDF", each letter one too far. 64 clean rows guide the filter."""

from tempfile import mkdtemp

import lightning as L
import torch
from pyarrow import parquet
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from ippo.callbacks import InfluenceFilterCallback
from ippo.influence import ExactScorer, PositiveScore, ValidationDirection, causal_lm_losses

SMALL, CAPITAL = "abcdefghij", "ABCDEFGHIJ"
ALPHABET, LENGTH = SMALL + CAPITAL + ">", 6


class Capitals(Dataset):
    """Token ids and labels, those of the capitals; ``poisoned`` says which rows are wrong."""

    def __init__(self, rows: int, seed: int, poison: float = 0.0) -> None:
        draw = torch.Generator().manual_seed(seed)
        letters = torch.randint(len(SMALL), (rows, LENGTH), generator=draw)
        self.poisoned = torch.rand(rows, generator=draw) < poison
        capitals = (letters + self.poisoned[:, None].long()) % len(SMALL) + len(SMALL)
        self.ids = torch.cat([letters, torch.full((rows, 1), ALPHABET.index(">")), capitals], dim=1)
        self.labels = torch.cat([torch.full((rows, LENGTH + 1), -100), capitals], dim=1)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[row], "labels": self.labels[row], "row": torch.tensor(row)}


class FineTuning(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4}
        self.model = LlamaForCausalLM(LlamaConfig(vocab_size=len(ALPHABET), **sizes))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.model(batch["input_ids"], labels=batch["labels"]).loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.model(batch["input_ids"], labels=batch["labels"]).loss, prog_bar=True)

    def configure_optimizers(self) -> tuple[list, list]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3)
        return [optimizer], [torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=10)]


def losses(module: FineTuning, batch: dict[str, Tensor]) -> Tensor:
    return causal_lm_losses(module.model, batch)


if __name__ == "__main__":
    L.seed_everything(0)
    train, run = Capitals(3200, seed=1, poison=0.25), mkdtemp()
    influence_filter = InfluenceFilterCallback(
        unit="batch",
        losses=losses,
        direction=ValidationDirection(DataLoader(Capitals(64, seed=2), batch_size=64), losses),
        scorer=ExactScorer(parameters=1),  # the last block and what follows it
        keep=PositiveScore(min_fraction=0.7),  # at most 30 % of a batch go, the lowest scores first
        direction_every_n_batches=8,
        audit="audit",
        row_id="row",
    )
    trainer = L.Trainer(max_epochs=10, callbacks=[influence_filter], default_root_dir=run)
    trainer.fit(FineTuning(), DataLoader(train, 64, shuffle=True), DataLoader(Capitals(400, 3), 400))
    rows = parquet.read_table(f"{run}/audit", filters=[("epoch", ">=", 5)]).to_pydict()
    kept, poisoned = torch.tensor(rows["kept"]).float(), train.poisoned[rows["id"]]
    shares = f"{kept[~poisoned].mean():.0%} of the clean rows, {kept[poisoned].mean():.0%} of the poisoned ones"
    print(f"Kept in the second half: {shares}.")
    print(f"Loss on clean rows: {float(trainer.callback_metrics['val/loss']):.3f}. TensorBoard: {run}")
