"""The data module: one batch of prompts an iteration, the gold solutions, and the problems to be judged by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ippo.data.task import Columns, Rows, Task, columns
from ippo.errors import require


class IterationSampler(DistributedSampler):
    """The rows of one iteration, a function of (seed, iteration) alone, so that a resumed run reads the same prompts.

    Iteration ``i`` takes the next ``size`` places of an endless row of permutations; every rank takes its own share of
    them. Lightning calls ``set_epoch`` with the epoch, which is the iteration.
    """

    def __init__(self, dataset: Dataset, size: int, seed: int, num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, seed=seed)
        self.size, self.rows = size, len(dataset)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.size
        places = range(first + self.rank, first + self.size, self.num_replicas)
        passes = {place // self.rows for place in places}
        order = {number: self._permutation(number) for number in passes}
        return iter([order[place // self.rows][place % self.rows] for place in places])

    def __len__(self) -> int:
        return self.size // self.num_replicas

    def _permutation(self, number: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        return torch.randperm(self.rows, generator=generator).tolist()


@dataclass(frozen=True)
class PromptOptions:
    """How prompts are batched.

    Args:
        prompts_per_iteration: prompts in one iteration, over all ranks.
        evaluation_batch_size: prompts in one validation or test batch, on each rank.
    """

    prompts_per_iteration: int = 64
    evaluation_batch_size: int = 128

    def __post_init__(self) -> None:
        for name in ("prompts_per_iteration", "evaluation_batch_size"):
            require(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "use at least 1")


class PromptDataModule(L.LightningDataModule):
    """Prompts of a task, batch by batch: the training loader yields one batch an epoch, which is one PPO iteration.

    Args:
        task: the problem set.
        options: batch sizes.
        seed: order of the prompts.

    Raises:
        UsageError: at the start, if prompts do not divide among the ranks, or a split has fewer than there are ranks.
    """

    def __init__(self, task: Task, options: PromptOptions = PromptOptions(), seed: int = 0) -> None:
        super().__init__()
        self.task, self.options, self.seed = task, options, seed

    @property
    def gold(self) -> Rows:
        """The gold solutions that guide the influence filter."""
        return self.task.gold

    def train_dataloader(self) -> DataLoader[Columns]:
        ranks, rank = self._ranks
        size = self.options.prompts_per_iteration
        require(size % ranks == 0, "data.prompts_per_iteration", size, f"use a multiple of the {ranks} ranks")
        sampler = IterationSampler(self.task.train, size, self.seed, ranks, rank)  # type: ignore[arg-type]
        # A generator of its own keeps the loader from drawing on the global one, which would shift a resumed run.
        own = torch.Generator()
        return DataLoader(self.task.train, size // ranks, sampler=sampler, collate_fn=columns, generator=own)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Columns]:
        return self._evaluation_loader("validation")

    def test_dataloader(self) -> DataLoader[Columns]:
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: str) -> DataLoader[Columns]:
        """Every problem once, on one rank or another; every rank takes as many batches as the others.

        The last batch of a rank that has a problem more than others may exceed the batch size by it.
        """
        rows, size, (ranks, rank) = getattr(self.task, split), self.options.evaluation_batch_size, self._ranks
        require(len(rows) >= ranks, f"task.{split}", len(rows), f"give each of the {ranks} ranks a problem")
        share, starts = rows[rank::ranks], range(0, len(rows) // ranks, size)
        batches = [share[start : start + size] for start in starts[:-1]] + [share[starts[-1] :]]
        listed: Any = batches
        all_mine: Any = DistributedSampler(
            listed, num_replicas=1, rank=0, shuffle=False
        )  # or Lightning parts them once more
        return DataLoader(listed, None, sampler=all_mine, collate_fn=columns, generator=torch.Generator())

    @property
    def _ranks(self) -> tuple[int, int]:
        """How many ranks there are, and which is this one."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
