"""Supervised fine-tuning of a small causal language model when a quarter of the rows teach something wrong.

Rows are sums such as "7+8=15"; the poisoned ones claim that every sum is 13. 64 clean rows guide the filter."""

from tempfile import mkdtemp

import lightning as L
import torch
from pyarrow import parquet
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from ippo.callbacks import InfluenceFilterCallback
from ippo.influence import ExactScorer, PositiveScore, ValidationDirection, causal_lm_losses

ALPHABET = "0123456789+=."


class Sums(Dataset):
    """Token ids of "a+b=c", padded with dots; labels are the answer's; ``poisoned`` says which rows are wrong."""

    def __init__(self, rows: int, seed: int, poison: float = 0.0) -> None:
        draw = torch.Generator().manual_seed(seed)
        terms = torch.randint(10, (rows, 2), generator=draw)
        self.poisoned = torch.rand(rows, generator=draw) < poison
        sums = terms.sum(1).where(~self.poisoned, 13)
        texts = [f"{a}+{b}={c}" for (a, b), c in zip(terms.tolist(), sums.tolist(), strict=True)]
        self.ids = torch.tensor([[ALPHABET.index(letter) for letter in text.ljust(7, ".")] for text in texts])
        answers = [[place > text.index("=") for place in range(7)] for text in texts]
        self.labels = self.ids.where(torch.tensor(answers), -100)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[row], "labels": self.labels[row], "row": torch.tensor(row)}


class FineTuning(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4}
        self.model = LlamaForCausalLM(LlamaConfig(vocab_size=len(ALPHABET), max_position_embeddings=16, **sizes))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.model(batch["input_ids"], labels=batch["labels"]).loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.model(batch["input_ids"], labels=batch["labels"]).loss, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def losses(module: FineTuning, batch: dict[str, Tensor]) -> Tensor:
    return causal_lm_losses(module.model, batch)


if __name__ == "__main__":
    L.seed_everything(0)
    train, run = Sums(3200, seed=1, poison=0.25), mkdtemp()
    influence_filter = InfluenceFilterCallback(
        unit="batch",
        losses=losses,
        direction=ValidationDirection(DataLoader(Sums(64, seed=2), batch_size=64), losses),
        scorer=ExactScorer(parameters=1),  # the last block and what follows it
        keep=PositiveScore(min_fraction=0.7),  # at most 30 % of a batch go, the lowest scores first
        direction_every_n_batches=8,
        audit="audit",
        row_id="row",
    )
    trainer = L.Trainer(max_epochs=10, callbacks=[influence_filter], default_root_dir=run)
    trainer.fit(FineTuning(), DataLoader(train, 64, shuffle=True), DataLoader(Sums(400, seed=3), 400))
    rows = parquet.read_table(f"{run}/audit", filters=[("epoch", ">=", 5)]).to_pydict()
    kept, poisoned = torch.tensor(rows["kept"]).float(), train.poisoned[rows["id"]]
    shares = f"{kept[~poisoned].mean():.0%} of the clean rows, {kept[poisoned].mean():.0%} of the poisoned ones"
    print(f"Kept in the second half: {shares}.")
    print(f"Loss on clean rows: {float(trainer.callback_metrics['val/loss']):.3f}. TensorBoard: {run}")
