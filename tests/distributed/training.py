"""The same training on one rank and on two, replicated or in parts: what it learns from, and what comes of it."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from launch import RANKS, on_ranks
from torch import Tensor

from ippo.data import Task
from ippo.data.prompts import IterationSampler
from ippo.influence import Scorer
from ippo.rewards import CHAIN_CLASSES
from ippo.rollout.engines.hf import HFGenerate
from ippo.rollout.sampling import Sampling
from ippo.rollout.sequences import Sequences, pad_left

Train = Callable[..., dict[str, Any]]

PROMPTS, SAMPLES, ITERATIONS = 10, 2, 3
PAIRS = [  # three, which two ranks cannot share evenly
    {
        "prompt": f"Ava has {count} pens, buys 4. How many now?\n",
        "chosen": f"#### {count + 4}",
        "rejected": "1-1=0\n#### 9",
    }
    for count in (1, 2, 3)
]
OPTIONS = {"samples_per_prompt": SAMPLES, "inner_epochs": 2, "minibatch_size": 99, "micro_batch_size": 3}


class ByPrompt(HFGenerate):
    """Answers that depend on the prompt alone, whichever rank is asked."""

    def generate(self, policy: Any, prompts: Sequence[str], sampling: Sampling) -> Sequences:
        ids, mask = pad_left(self.tokenizer(list(prompts))["input_ids"], self.tokenizer.pad_token_id)
        seen: Counter[str] = Counter()
        rows = []
        for prompt in prompts:
            seen[prompt] += 1
            generator = torch.Generator().manual_seed(zlib.crc32(prompt.encode()) + seen[prompt])
            length = int(torch.randint(2, 9, (), generator=generator))
            words = torch.randint(5, len(self.tokenizer), (length,), generator=generator).tolist()
            rows.append([*words, self.tokenizer.eos_token_id])
        width = max(map(len, rows))
        response = torch.tensor([row + [self.tokenizer.pad_token_id] * (width - len(row)) for row in rows])
        return Sequences(ids, mask, response, torch.tensor([[i < len(row) for i in range(width)] for row in rows]))


def places(task: Task) -> dict[str, int]:
    """Where in its iteration each prompt is; the even ones are rank 0's."""
    found: dict[str, int] = {}
    sampler = IterationSampler(task.train, PROMPTS, seed=0, num_replicas=1, rank=0)  # type: ignore[arg-type]
    for iteration in range(ITERATIONS):
        sampler.set_epoch(iteration)
        found.update({task.train[row]["prompt"]: place for place, row in enumerate(sampler)})
    return found


class ByPlace(Scorer):
    """Scores by decree: +1 for the first few episodes of each rank's share, -1 for the rest."""

    def __init__(self, task: Task, kept: Sequence[int]) -> None:
        self.kept, self.places = kept, places(task)

    def score(self, module: Any, losses: Any, batches: Any, direction: Any) -> Tensor:
        seen: Counter[str] = Counter()
        scores = []
        for prompt in (prompt for batch in batches for prompt in batch.prompts):
            rank, turn = self.places[prompt] % RANKS, self.places[prompt] // RANKS * SAMPLES + seen[prompt]
            seen[prompt] += 1
            scores.append(1.0 if turn < self.kept[rank] else -1.0)
        return torch.tensor(scores)


def classes(prompts: Sequence[str], completions: Sequence[str], **_: object) -> dict[str, list[Any]]:
    """A truth that depends on the text alone and finds all classes."""
    kinds = [CHAIN_CLASSES[zlib.crc32(text.encode()) % len(CHAIN_CLASSES)] for text in completions]
    return {"answer": list(completions), "correct": [kind not in ("wrong", "hacked") for kind in kinds], "chain": kinds}


def both(
    train: Train, folder: Path, *makers: Callable[[], L.Callback], sharded: bool = False, **options: Any
) -> Iterator[tuple[Any, Any]]:
    """What one rank finds, and what each of two finds, for each callback in turn; replicated or in parts."""
    pairs = on_ranks(lambda rank: [train(RANKS, make(), sharded=sharded, **options) for make in makers], folder)
    for place, make in enumerate(makers):
        one = train(1, make(), **options)
        yield from ((one, rank[place]) for rank in pairs)


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of a parameter tensor, relative to its norm."""
    return max(float((found[name] - value).norm() / value.norm().clamp(min=1e-3)) for name, value in expected.items())


def assert_same(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 3e-5) -> None:
    # Two ranks add up in another order, and Adam divides what is rounding by what is small: 1e-7 of the weights after
    # three iterations on processors with AVX-512, up to 6e-6 with AVX2. What is learned is 1e-2.
    assert distance(found["weights"], expected["weights"]) < tolerance
    assert found["test"] == pytest.approx(expected["test"])
    assert found["stopped_by"] == expected["stopped_by"]
    assert len(found["curves"]) == len(expected["curves"])
    for mine, theirs in zip(found["curves"], expected["curves"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    known = {text: score for text, score in expected["scores"].items() if score is not None}
    for text, score in found["scores"].items():  # of this rank's own episodes; one that is not finite has none
        assert score == pytest.approx(expected["scores"][text], abs=1e-4 * max(map(abs, known.values())))
