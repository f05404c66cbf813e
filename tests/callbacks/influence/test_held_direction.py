"""How long a direction holds, and what is told of it."""

from __future__ import annotations

import pytest
import torch
from parts import MakeTrainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ippo.callbacks.influence.gold_batches import GoldBatches
from ippo.callbacks.influence.held_direction import HeldDirection
from ippo.errors import UsageError
from ippo.influence import ValidationDirection


def halves(module: nn.Module, x: Tensor) -> Tensor:
    """(w x) ** 2 / 2"""
    return (module(x) ** 2 / 2).flatten()


def held(every: int) -> HeldDirection:
    return HeldDirection(ValidationDirection([torch.tensor([[1.0]])], halves), every)


def test_the_loss_is_that_of_the_direction_in_use_also_after_a_resume() -> None:
    module, first = nn.Linear(1, 1, bias=False), held(every=3)
    module.weight.data.fill_(2.0)
    first.at(module, 1)
    assert first.loss == pytest.approx(2.0)  # 2 ** 2 / 2
    module.weight.data.fill_(4.0)
    first.at(module, 2)  # the same direction still
    resumed = held(every=3)
    resumed.load_state_dict(first.state_dict())
    resumed.check(module)  # a trial before training starts, which computes it for nothing
    for each in (first, resumed):
        assert each.loss == pytest.approx(2.0)
        each.at(module, 4)
        assert each.loss == pytest.approx(8.0)


def test_a_restored_direction_goes_where_the_parameters_are() -> None:
    """A checkpoint is loaded to the CPU; another dtype stands for another device here."""
    module, first, resumed = nn.Linear(1, 1, bias=False), held(every=3), held(every=3)
    first.at(module, 1)
    resumed.load_state_dict(first.state_dict())
    found = resumed.at(module.double(), 2)
    assert {name: tensor.dtype for name, tensor in found.items()} == {"weight": torch.float64}  # type: ignore[union-attr]


def test_a_given_direction_has_no_loss() -> None:
    assert HeldDirection({"weight": torch.ones(1, 1)}).loss is None


class TestAHeldDirectionIsComputedAnew:
    def test_when_a_batch_scores_lower_than_the_one_it_was_computed_for(self) -> None:
        module, direction = nn.Linear(1, 1, bias=False), held(every=9)
        module.weight.data.fill_(2.0)
        direction.at(module, 1)
        module.weight.data.fill_(-1.0)  # a step past the goal
        first = torch.tensor([2.0, 0.0, 1.0, 1.0])  # mean 1, standard error sqrt(2 / 3 / 4) = 0.41
        assert not direction.has_turned(first, 1)
        assert not direction.has_turned(first - 1.15, 2)  # two errors of the difference of such means are 1.155
        assert not direction.has_turned(first + 5, 2)
        assert not direction.has_turned(torch.tensor([-99.0]), 2)  # of one row nothing is known
        assert float(direction.at(module, 2)["weight"]) == pytest.approx(2.0)  # type: ignore[index,arg-type]
        assert direction.has_turned(first - 1.16, 2)
        assert float(direction.at(module, 2)["weight"]) == pytest.approx(-1.0)  # type: ignore[index,arg-type]

    def test_but_not_within_an_accumulation(self) -> None:
        moved, module = False, nn.Linear(1, 1, bias=False)
        direction = HeldDirection(held(1).direction, 2, may_renew=lambda: moved)
        module.weight.data.fill_(2.0)
        first = direction.at(module, 1)
        direction.has_turned(torch.tensor([1.0, 1.1]), 1)
        assert not direction.has_turned(torch.tensor([-1.0, -1.1]), 2)
        assert direction.at(module, 3) is first
        moved = True
        assert direction.at(module, 3) is not first

    def test_when_other_parameters_are_trained(self) -> None:
        """As a backbone that is unfrozen after some epochs."""
        module, direction = nn.Linear(1, 1), held(every=9)
        module.bias.requires_grad_(False)
        assert direction.at(module, 1).keys() == {"weight"}  # type: ignore[union-attr]
        module.bias.requires_grad_(True)
        assert direction.at(module, 2).keys() == {"weight", "bias"}  # type: ignore[union-attr]
        module.weight.requires_grad_(False)
        assert direction.at(module, 3).keys() == {"bias"}  # type: ignore[union-attr]


def computed_at(direction: HeldDirection, weights: dict[int, float]) -> list[int]:
    """The batches of 1 to 20 at which it was computed, where the module's weight is set before some of them."""
    module, batches = nn.Linear(1, 1, bias=False), []
    for batch in range(1, 21):
        module.weight.data.fill_(weights.get(batch, float(module.weight)))
        before = direction.state_dict()["held"]
        direction.at(module, batch)
        if before is None or before["batch"] != direction.state_dict()["held"]["batch"]:
            batches.append(batch)
    return batches


class TestWhenTheGoldLossDoesNotFall:
    """From one direction to the next: one that is held for too long is followed past the goal."""

    def test_it_holds_half_as_long_until_it_falls_again(self) -> None:
        losses = ValidationDirection([torch.tensor([[1.0], [1.1]])], halves)
        weights = {1: 2.0, 9: 3.0, 13: 4.0, 15: 1.0}  # rises at 9 and at 13, falls at 15
        assert computed_at(HeldDirection(losses, 8), weights) == [1, 9, 13, 15, 19]

    def test_while_it_falls_nothing_changes(self) -> None:
        losses = ValidationDirection([torch.tensor([[1.0], [1.1]])], halves)
        assert computed_at(HeldDirection(losses, 8), {1: 5.0, 9: 4.0, 17: 3.0}) == [1, 9, 17]

    def test_a_fall_by_chance_is_none(self) -> None:
        """One row's loss falls by 1 and the other's rises by 0.9: the error of their mean is larger than the mean."""

        def of_two(module: nn.Module, x: Tensor) -> Tensor:
            return module(x).flatten() * torch.tensor([1.0, -0.9])

        direction = HeldDirection(ValidationDirection([torch.ones(2, 1)], of_two), 4)
        assert computed_at(direction, {1: 2.0, 5: 1.0}) == [1, 5, *range(7, 21, 2)]

    def test_also_after_a_resume(self) -> None:
        module = nn.Linear(1, 1, bias=False)
        losses = ValidationDirection([torch.tensor([[1.0], [1.1]])], halves)
        first, resumed = HeldDirection(losses, 8), HeldDirection(losses, 8)
        for batch, weight in ((1, 2.0), (9, 3.0)):
            module.weight.data.fill_(weight)
            first.at(module, batch)
        resumed.load_state_dict(first.state_dict())
        for one in (first, resumed):
            one.at(module, 13)  # half of eight
            assert one.state_dict()["held"]["batch"] == 13


def test_measuring_the_loss_moves_nothing() -> None:
    module, direction = nn.Linear(1, 1, bias=False), held(every=3)
    module.weight.data.fill_(2.0)
    direction.at(module, 1)
    module.weight.data.fill_(4.0)
    before = direction.state_dict()
    assert direction.measure(module) == pytest.approx(8.0)  # 4 ** 2 / 2
    assert direction.state_dict() == before
    assert direction.loss == pytest.approx(2.0)
    assert HeldDirection({"weight": torch.ones(1, 1)}).measure(module) is None


class Graphs:
    """A batch whose rows nobody can count."""

    def __init__(self, rows: list[Tensor]) -> None:
        self.rows = rows


class TestRowsOfATypeOfTheirOwn:
    def test_are_as_many_as_the_loader_puts_into_a_batch(self, make_trainer: MakeTrainer) -> None:
        loader = DataLoader(torch.arange(12.0), batch_size=3, collate_fn=Graphs)
        gold = GoldBatches(make_trainer(), loader, rows=6)
        assert [[row.item() for batch in gold for row in batch.rows] for _ in range(2)] == [
            [0, 1, 2, 3, 4, 5],
            [6, 7, 8, 9, 10, 11],
        ]

    def test_are_refused_where_no_loader_says_so(self, make_trainer: MakeTrainer) -> None:
        gold = GoldBatches(make_trainer(), [Graphs([torch.zeros(1)])], rows=6)
        with pytest.raises(UsageError, match=r"direction = 'of a Graphs': .* pass a DataLoader with a batch_size"):
            list(gold)
