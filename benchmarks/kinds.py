"""Six kinds of small trainings with right or wrong labels, for the harm check: `make` one, train it, ask its accuracy.

Each trains until its accuracy no longer rises steeply, without a filter and without wrong labels, on seeds that are not
reported. Images are scikit-learn's digits; texts are made in code: words of three topics among others that say nothing,
where "not" hands the next word's vote to another topic.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import digits
import poisoned_sft

TOPICS, WORDS, LENGTH, NOT = 3, 24, 12, 0
VOCABULARY = 1 + 2 * TOPICS * WORDS  # half of the words belong to a topic


class Kind(NamedTuple):
    """A training that is ready, and what the filter needs of it."""

    module: L.LightningModule
    train: DataLoader
    gold: DataLoader
    epochs: int
    losses: Callable[[Any, Any], Tensor]
    accuracy: Callable[[], float]


class Texts(NamedTuple):
    """[n, 12] words and [n] topics."""

    words: Tensor
    topics: Tensor

    @classmethod
    def drawn(cls, rows: int, draw: torch.Generator) -> Texts:
        """About half of the words vote; the topic with the most votes is the text's, of a tie the first."""
        topic = torch.randint(TOPICS, (rows, 1), generator=draw)
        loyal = torch.rand(rows, LENGTH, generator=draw) < 0.6
        voted = torch.where(loyal, topic, torch.randint(TOPICS, (rows, LENGTH), generator=draw))
        votes = torch.rand(rows, LENGTH, generator=draw) < 0.5
        negated = (torch.rand(rows, LENGTH, generator=draw) < 0.1).roll(1, dims=1)
        negated[:, 0] = False
        word = (torch.rand(rows, LENGTH, generator=draw) ** 2 * WORDS).long()  # some words are rarer than others
        silent = (torch.rand(rows, LENGTH, generator=draw) * TOPICS * WORDS).long() + TOPICS * WORDS
        words = 1 + torch.where(votes, (voted + negated.long()) % TOPICS * WORDS + word, silent)
        words[negated.roll(-1, dims=1)] = NOT
        votes &= ~negated.roll(-1, dims=1)
        counted = nn.functional.one_hot(voted, TOPICS) * votes[..., None]
        return cls(words, counted.sum(1).argmax(1))


class Classifier(L.LightningModule):
    """Any network of inputs to logits, with cross-entropy and Adam."""

    def __init__(self, net: nn.Module, rate: float) -> None:
        super().__init__()
        self.net, self.rate = net, rate

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.rate)


class Bag(nn.Module):
    """The mean of the words' vectors, and a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors = nn.Embedding(VOCABULARY, 32)
        self.head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, TOPICS))

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.vectors(words).mean(1))


class Encoder(nn.Module):
    """BERT in small."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        options = {"vocab_size": VOCABULARY, "max_position_embeddings": LENGTH, "num_labels": labels}
        self.bert = BertForSequenceClassification(BertConfig(**sizes, **options))

    def forward(self, words: Tensor) -> Tensor:
        places = torch.arange(words.shape[1]).expand_as(words)
        return self.bert(words, position_ids=places, token_type_ids=torch.zeros_like(words)).logits


def convolutional() -> nn.Module:
    """Ends in a ReLU, so that a class can die; none is dead at the start."""
    head = nn.Linear(128, 10)
    nn.init.constant_(head.bias, 1.0)
    parts = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    parts += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *parts, nn.Flatten(), head, nn.ReLU())


def shuffled(*columns: Tensor, size: int) -> DataLoader:
    """Batches that are cut out of the columns at once: cheaper than these networks, other than row by row."""
    rows = TensorDataset(*columns)
    return DataLoader(rows, None, sampler=BatchSampler(RandomSampler(rows), size, drop_last=False), collate_fn=list)


def losses(module: Any, batch: list[Tensor]) -> Tensor:
    return nn.functional.cross_entropy(module.net(batch[0]), batch[1], reduction="none")


def images(seed: int, wrong: float, module: L.LightningModule, epochs: int) -> Kind:
    data = digits.Digits(seed, wrong)
    gold, (pixels, labels) = DataLoader(data.gold, batch_size=60), data.test.tensors
    return Kind(
        module, shuffled(*data.train.tensors, size=64), gold, epochs, losses, lambda: accuracy(module, pixels, labels)
    )


def texts(seed: int, wrong: float, module: L.LightningModule, epochs: int) -> Kind:
    draw = torch.Generator().manual_seed(seed)
    gold, test, train = (Texts.drawn(rows, draw) for rows in (64, 1000, 960))
    flipped = torch.rand(len(train.topics), generator=draw) < wrong
    others = (train.topics + torch.randint(1, TOPICS, train.topics.shape, generator=draw)) % TOPICS
    batches = shuffled(train.words, torch.where(flipped, others, train.topics), size=32)
    loader = DataLoader(TensorDataset(*gold), batch_size=64)
    return Kind(module, batches, loader, epochs, losses, lambda: accuracy(module, *test))


def accuracy(module: Any, inputs: Tensor, labels: Tensor) -> float:
    module.eval()
    with torch.no_grad():
        return float((module.net(inputs).argmax(1) == labels).float().mean())


def pretrained(seed: int) -> Encoder:
    """An encoder that has learned the first topic from the others on texts of its own, with a fresh head."""
    draw, known, fresh = torch.Generator().manual_seed(seed + 5000), Encoder(2), Encoder(TOPICS)
    optimizer = torch.optim.Adam(known.parameters(), lr=3e-3)
    for _ in range(100):
        text = Texts.drawn(32, draw)
        nn.functional.cross_entropy(known(text.words), (text.topics == 0).long()).backward()
        optimizer.step()
        optimizer.zero_grad()
    fresh.bert.bert.load_state_dict(known.bert.bert.state_dict())
    return fresh


class FineTuning(poisoned_sft.FineTuning):
    """The example's language model, with half of its layers and width."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
        self.model = LlamaForCausalLM(LlamaConfig(vocab_size=len(poisoned_sft.ALPHABET), **sizes))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def capitals(seed: int, wrong: float) -> Kind:
    train = poisoned_sft.Capitals(1280, seed=3 * seed + 1, poison=wrong)
    gold, test = (poisoned_sft.Capitals(rows, seed=3 * seed + 2 + k) for k, rows in enumerate((64, 400)))
    module = FineTuning()

    def token_accuracy() -> float:
        module.eval()
        with torch.no_grad():
            told = module.model(test.ids).logits[:, :-1].argmax(-1)
        said = test.labels[:, 1:] >= 0
        return float((told == test.labels[:, 1:])[said].float().mean())

    loaders = DataLoader(train, 32, shuffle=True), DataLoader(gold, 64)
    return Kind(module, *loaders, 4, poisoned_sft.losses, token_accuracy)


KINDS: dict[str, Callable[[int, float], Kind]] = {
    "digits, MLP": lambda seed, wrong: images(seed, wrong, digits.Classifier(), 15),
    "digits, CNN ending in a ReLU": lambda seed, wrong: images(seed, wrong, Classifier(convolutional(), 2e-3), 15),
    "texts, bag of words": lambda seed, wrong: texts(seed, wrong, Classifier(Bag(), 3e-3), 10),
    "texts, transformer": lambda seed, wrong: texts(seed, wrong, Classifier(Encoder(TOPICS), 3e-3), 8),
    "texts, pretrained transformer": lambda seed, wrong: texts(seed, wrong, Classifier(pretrained(seed), 3e-3), 12),
    "capitals, language model": capitals,
}
"""``make(seed, wrong)``, ``wrong`` the share of wrong training labels."""
