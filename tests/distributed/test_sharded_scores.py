"""Scores of a model that FSDP2 has spread over the ranks are those that one device gives."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from architectures import losses, roll_out
from launch import on_ranks
from sharded_models import MODELS, by_block
from torch import Tensor

from ippo.distributed import gather, whole
from ippo.influence import (
    AdamPreconditioned,
    BufferDirection,
    Direction,
    ExactScorer,
    PositiveScore,
    Proportional,
    RandomProjectionScorer,
    ReturnDirection,
    Scorer,
    TracInScorer,
    ValidationDirection,
    select_episodes,
)
from ippo.influence.in_step import Filling
from ippo.influence.parameters import trainable

EPISODES = {2: [[0, 1, 2, 3, 4], [5]], 3: [[0, 1, 2, 3], [], [4, 5]]}
"""Of each rank. Micro-batches hold two; ranks with fewer of them run fillings."""


class Case:
    """A model, alone or spread over the ranks, with episodes and gold rows: all of them, or this rank's share."""

    def __init__(self, make: Callable[[], Any], ranks: int = 1, rank: int = 0) -> None:
        model = make()
        torch.manual_seed(1)
        episodes, gold = roll_out(model, [3, 1, 4, 2, 3, 2], [4, 3, 6, 2, 5, 1]), roll_out(model, [3, 4, 2], [4, 3, 5])
        self.model = model if ranks == 1 else by_block(model)
        own = [*range(6)] if ranks == 1 else EPISODES[ranks][rank]
        self.gold = gold.rows(torch.arange(rank, 3, ranks)).chunks(1)
        self.episodes: list[Any] = episodes.rows(torch.tensor(own, dtype=torch.long)).chunks(2)
        if not self.episodes:
            self.episodes = [Filling(episodes.rows(torch.tensor([0])))]

    @property
    def validation(self) -> ValidationDirection:
        return ValidationDirection(self.gold, losses)

    def score(self, scorer: Scorer, direction: Direction) -> Tensor:
        return scorer.score(self.model, losses, self.episodes, direction)

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam after a step along the direction."""
        parameters = trainable(self.model)
        optimizer = torch.optim.Adam(parameters.values(), lr=1e-3)
        for name, gradient in self.validation.compute(self.model).items():
            parameters[name].grad = gradient
        optimizer.step()
        return optimizer


def all_parameters(case: Case) -> Tensor:
    return case.score(ExactScorer(), case.validation)


def last_block(case: Case) -> Tensor:
    return case.score(ExactScorer(parameters=1), case.validation)


def leave_one_out(case: Case) -> Tensor:
    return case.score(ExactScorer(), BufferDirection(leave_one_out=True))


def returns(case: Case) -> Tensor:
    return case.score(ExactScorer(parameters="layers|h\\."), ReturnDirection("buffer", losses))


def as_adam_would(case: Case) -> Tensor:
    return case.score(ExactScorer(), AdamPreconditioned(case.validation, case.optimizer(), eps=1e-3))


def projected(case: Case) -> Tensor:
    return case.score(RandomProjectionScorer(rank=4), case.validation)


def along_the_path(case: Case) -> Tensor:
    """Two snapshots, the second of a state that a checkpoint has kept."""
    first, scorer = TracInScorer(snapshots=2, parameters=1), TracInScorer(snapshots=2, parameters=1)
    first.observe(case.model, 0.1)
    scorer.load_state_dict(saved(first.state_dict()))
    case.optimizer()
    scorer.observe(case.model, 0.2)
    before = {name: whole(parameter).clone() for name, parameter in trainable(case.model).items()}
    scores = case.score(scorer, case.validation)
    for name, parameter in trainable(case.model).items():
        assert torch.equal(whole(parameter), before[name])
    return scores


def saved(state: Any) -> Any:
    """As a checkpoint gives it back, which the first rank has written."""
    if not dist.is_initialized():
        return state
    objects = [state]
    dist.broadcast_object_list(objects)
    return objects[0]


WAYS = {way.__name__: way for way in (all_parameters, last_block, leave_one_out)}
FURTHER = {way.__name__: way for way in (returns, as_adam_would, projected, along_the_path)}


def ways(model: str) -> dict[str, Callable[[Case], Tensor]]:
    """All of them on one model with a weight of two uses, and on adapters."""
    return {**WAYS, **FURTHER} if model in ("llama, tied", "llama, LoRA") else WAYS


def found(case: Case, rank: int, model: str) -> dict[str, Any]:
    direction = {name: whole(part) for name, part in case.validation.compute(case.model).items()}
    scores = {name: gather(way(case))[0] for name, way in ways(model).items()}
    return {"direction": direction, "scores": scores}


CASES = [*((2, model) for model in MODELS), (3, "llama, tied")]


@pytest.fixture(scope="module")
def found_by(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, list[Any]]]:
    """What each of so many ranks finds, by model; one start of the processes for all models, since forking a process
    and joining it to its group takes longer than a model does."""

    @functools.cache
    def found_by(count: int) -> dict[str, list[Any]]:
        models = {model: MODELS[model] for ranks, model in CASES if ranks == count}

        def run(rank: int) -> dict[str, Any]:
            dist.init_process_group("gloo", rank=rank, world_size=count)
            return {name: found(Case(make, count, rank), rank, name) for name, make in models.items()}

        each = on_ranks(run, tmp_path_factory.mktemp("ranks"), ranks=count)
        return {name: [one[name] for one in each] for name in models}

    return found_by


@pytest.mark.parametrize(("count", "model"), CASES)
def test_directions_scores_and_selections_are_those_of_one_device(
    found_by: Callable[[int], dict[str, list[Any]]], count: int, model: str
) -> None:
    ranks = found_by(count)[model]
    alone = found(Case(MODELS[model]), 0, model)
    order = torch.cat([torch.tensor(rows, dtype=torch.long) for rows in EPISODES[count]])
    for one in ranks:
        for name, expected in alone["direction"].items():
            assert (one["direction"][name] - expected).norm() <= 1e-5 * expected.norm()
        assert list(one["scores"]) == list(alone["scores"])
        for way, scores in one["scores"].items():
            expected = alone["scores"][way][order]
            assert (scores - expected).norm() <= 1e-5 * expected.norm(), way
            assert torch.equal(scores > 0, expected > 0)
            mine, theirs = (
                select_episodes(each, each * 0, order * 0, PositiveScore(), Proportional())
                for each in (scores, expected)
            )
            assert torch.equal(mine.kept, theirs.kept)
            torch.testing.assert_close(mine.weights, theirs.weights, rtol=1e-5, atol=0)
