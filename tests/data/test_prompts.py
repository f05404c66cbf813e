from __future__ import annotations

from types import SimpleNamespace

import pytest
from parts import MakeModule, MakeTrainer, Recorder

from ippo import PromptDataModule
from ippo.data import Task
from ippo.data.prompts import IterationSampler, PromptOptions
from ippo.errors import UsageError

ROWS = 10


def sample(iteration: int, size: int = 4, seed: int = 3, ranks: int = 1, rank: int = 0) -> list[int]:
    """Each call asks a fresh sampler, so nothing but the arguments can matter."""
    sampler = IterationSampler(range(ROWS), size, seed, ranks, rank)  # type: ignore[arg-type]
    sampler.set_epoch(iteration)
    rows = list(sampler)
    assert len(sampler) == len(rows)
    return rows


class TestIterationSampler:
    def test_a_sampler_that_has_run_gives_what_a_fresh_one_gives(self) -> None:
        sampler = IterationSampler(range(ROWS), 4, 3, 1, 0)  # type: ignore[arg-type]
        for iteration in (0, 1, 2, 7, 1):
            sampler.set_epoch(iteration)
            assert list(sampler) == list(sampler) == sample(iteration)

    @pytest.mark.parametrize("size", [1, 4, 7, 10, 25])
    def test_every_pass_holds_each_row_once(self, size: int) -> None:
        places = [row for iteration in range(60 // size) for row in sample(iteration, size)]
        passes = [places[start : start + ROWS] for start in range(0, len(places) - ROWS + 1, ROWS)]
        assert len(passes) >= 5
        assert all(sorted(one) == list(range(ROWS)) for one in passes)
        assert len(set(map(tuple, passes))) == len(passes)  # and each in an order of its own

    def test_another_seed_gives_another_order(self) -> None:
        assert len({tuple(sample(0, size=10, seed=seed)) for seed in range(5)}) == 5

    @pytest.mark.parametrize("ranks", [2, 4])
    def test_ranks_share_out_the_rows_of_one_process(self, ranks: int) -> None:
        for iteration in range(5):
            shares = [sample(iteration, ranks=ranks, rank=rank) for rank in range(ranks)]
            assert [len(share) for share in shares] == [4 // ranks] * ranks
            assert sorted(row for share in shares for row in share) == sorted(sample(iteration))


class TestPromptDataModule:
    def test_training_reads_one_batch_an_iteration_as_the_sampler_says(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, recorder: Recorder
    ) -> None:
        make_trainer(recorder, max_epochs=3).fit(make_module(samples_per_prompt=2), data)
        for iteration, episodes in enumerate(recorder.episodes):
            sampler = IterationSampler(data.task.train, 4, 0, 1, 0)  # type: ignore[arg-type]
            sampler.set_epoch(iteration)
            assert episodes.prompts == [data.task.train[row]["prompt"] for row in sampler for _ in range(2)]
        assert len(recorder.episodes) == 3

    def test_evaluation_reads_every_row_in_order(self, task: Task, data: PromptDataModule) -> None:
        for loader, rows in ((data.val_dataloader(), task.validation), (data.test_dataloader(), task.test)):
            batches = list(loader)
            assert [len(batch["prompt"]) for batch in batches] == [4, 2]
            assert [prompt for batch in batches for prompt in batch["prompt"]] == [row["prompt"] for row in rows]
            assert batches[0].keys() == rows[0].keys()

    def test_gold_is_the_gold_split(self, task: Task, data: PromptDataModule) -> None:
        assert data.gold is task.gold

    def test_each_rank_loads_its_share(self, task: Task) -> None:
        batches = []
        for rank in range(2):
            data = PromptDataModule(task, PromptOptions(prompts_per_iteration=6), seed=5)
            data.trainer = SimpleNamespace(world_size=2, global_rank=rank)  # type: ignore[assignment]
            batches += list(data.train_dataloader())
        alone = next(iter(PromptDataModule(task, PromptOptions(prompts_per_iteration=6), seed=5).train_dataloader()))
        assert [len(batch["prompt"]) for batch in batches] == [3, 3]
        assert sorted(batches[0]["prompt"] + batches[1]["prompt"]) == sorted(alone["prompt"])

    def test_refuses_prompts_that_do_not_divide_among_the_ranks(self, data: PromptDataModule) -> None:
        data.trainer = SimpleNamespace(world_size=3, global_rank=0)  # type: ignore[assignment]
        with pytest.raises(UsageError, match=r"data\.prompts_per_iteration = 4: use a multiple of the 3 ranks"):
            data.train_dataloader()

    @pytest.mark.parametrize("name", ["prompts_per_iteration", "evaluation_batch_size"])
    def test_refuses_batches_of_nothing(self, name: str) -> None:
        with pytest.raises(UsageError, match=rf"data\.{name} = 0: use at least 1"):
            PromptOptions(**{name: 0})
