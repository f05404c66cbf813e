"""Scores added up along the path of training, against plain backwards at every point of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from small_modules import halves, squares, weight_of
from torch import Tensor, nn

from ippo.errors import UsageError
from ippo.influence import BufferDirection, ExactScorer, TracInScorer, ValidationDirection


def walk(scorer: TracInScorer, module: nn.Module, *steps: tuple[float, float]) -> None:
    """Observe the module at each (weight, learning rate)."""
    for weight, rate in steps:
        nn.init.constant_(module.get_parameter("weight"), weight)
        scorer.observe(module, rate)


ONE = {"weight": torch.ones(1, 1)}
BATCHES = [torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0]])]  # x ** 2 is 1, 4 and 9


class TestByHand:
    def test_rates_weigh_the_snapshots(self) -> None:
        """sum of rate * w * x ** 2 = (0.5 * 1 + 0.25 * 2 + 2 * 3) x ** 2"""
        scorer, module = TracInScorer(snapshots=3), weight_of(0.0)
        walk(scorer, module, (1.0, 0.5), (2.0, 0.25), (3.0, 2.0))
        assert scorer.score(module, halves, BATCHES, ONE).tolist() == [7.0, 28.0, 63.0]

    def test_where_the_module_is_by_now_does_not_matter(self) -> None:
        scorer, module = TracInScorer(), weight_of(0.0)
        walk(scorer, module, (1.0, 0.5), (2.0, 0.25))
        nn.init.constant_(module.weight, 99.0)
        assert scorer.score(module, halves, BATCHES, ONE).tolist() == [1.0, 4.0, 9.0]

    def test_before_any_snapshot_it_is_the_exact_score(self) -> None:
        assert TracInScorer().score(weight_of(3.0), halves, BATCHES, ONE).tolist() == [3.0, 12.0, 27.0]

    @pytest.mark.parametrize(("snapshots", "weights"), [(1, 4.0), (2, 7.0), (4, 10.0), (9, 10.0)])
    def test_the_oldest_snapshot_goes_first(self, snapshots: int, weights: float) -> None:
        scorer, module = TracInScorer(snapshots), weight_of(0.0)
        walk(scorer, module, (1.0, 1.0), (2.0, 1.0), (3.0, 1.0), (4.0, 1.0))
        assert scorer.score(module, halves, BATCHES[1:], ONE).tolist() == [9 * weights]

    def test_a_computed_direction_is_computed_at_every_snapshot(self) -> None:
        """Of y = 2 it is w y ** 2: sum of rate * w ** 2 x ** 2 y ** 2 = (1 * 1 + 0.5 * 9) * 4 x ** 2"""
        scorer, module = TracInScorer(), weight_of(0.0)
        walk(scorer, module, (1.0, 1.0), (3.0, 0.5))
        nn.init.constant_(module.weight, 99.0)
        direction = ValidationDirection([torch.tensor([[2.0]])], halves)
        assert scorer.score(module, halves, BATCHES, direction).tolist() == [22.0, 88.0, 198.0]

    def test_so_is_that_of_the_buffer(self) -> None:
        """The mean of w x ** 2 is w * 14 / 3; without an episode itself, the mean over the two others."""
        scorer, module = TracInScorer(), weight_of(0.0)
        walk(scorer, module, (1.0, 1.0), (3.0, 0.5))  # sum of rate * w ** 2 = 5.5
        scores = scorer.score(module, halves, BATCHES, BufferDirection())
        assert scores.tolist() == pytest.approx([5.5 * x * 14 / 3 for x in (1, 4, 9)])
        scores = scorer.score(module, halves, BATCHES, BufferDirection(leave_one_out=True))
        assert scores.tolist() == pytest.approx([5.5 * 1 * 6.5, 5.5 * 4 * 5, 5.5 * 9 * 2.5])

    def test_no_episodes_no_scores(self) -> None:
        scorer, module = TracInScorer(), weight_of(0.0)
        assert scorer.score(module, halves, [], ONE).tolist() == []
        walk(scorer, module, (1.0, 1.0), (3.0, 0.5))
        assert scorer.score(module, halves, [], ONE).tolist() == []


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(3, 3) for _ in range(3)])
        self.norm, self.head = nn.LayerNorm(3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(self.norm(x))


def plain_scores(module: nn.Module, batch: Tensor, gold: Tensor, names: Any) -> Tensor:
    """<gradient of an episode, gradient of the gold rows' mean> over the named parameters, by plain backwards."""
    parameters = [p for name, p in module.named_parameters() if names(name)]
    direction = torch.autograd.grad(squares(module, gold).mean(), parameters)
    scores = []
    for row in batch.split(1):
        gradients = torch.autograd.grad(squares(module, row).sum(), parameters)
        scores.append(torch.stack([(g * d).sum() for g, d in zip(gradients, direction, strict=True)]).sum())
    return torch.stack(scores)


@pytest.mark.parametrize("backend", ["auto", "jvp", "ghost", "loop"])
@pytest.mark.parametrize(
    ("subset", "names"),
    [(None, ""), (1, ("blocks.2.", "norm.", "head.")), (r"\.bias$", ("bias",))],
    ids=["all", "last block", "biases"],
)
def test_is_the_sum_over_the_path_of_training(backend: Any, subset: Any, names: Any) -> None:
    def counts(name: str) -> bool:
        return name.startswith(names) or name.endswith(names)

    module, batch, gold = Blocks(), torch.randn(5, 3), torch.randn(4, 3)
    optimizer, path = torch.optim.SGD(module.parameters(), lr=0.0), []
    scorer = TracInScorer(snapshots=2, backend=backend, parameters=subset)
    for rate in (0.5, 0.3, 0.1):
        optimizer.param_groups[0]["lr"] = rate
        scorer.observe(module, rate)
        path.append((rate, copy.deepcopy(module)))
        optimizer.zero_grad()
        squares(module, torch.randn(6, 3)).mean().backward()
        optimizer.step()  # in place: a snapshot must not move along
    expected = sum(rate * plain_scores(past, batch, gold, counts) for rate, past in path[1:])
    scores = scorer.score(module, squares, batch.split(2), ValidationDirection([gold], squares))
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-6)


class TestLeavesTheModuleAsItWas:
    @staticmethod
    def look(module: nn.Module) -> list[Any]:
        return [(id(p), p.data_ptr(), p._version, p.requires_grad, p.grad) for p in module.parameters()]

    @pytest.fixture
    def walked(self) -> tuple[TracInScorer, nn.Module]:
        scorer, module = TracInScorer(), Blocks()
        for _ in range(2):
            scorer.observe(module, 0.1)
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.mul_(1.1)
        return scorer, module

    def test_down_to_the_storage(self, walked: tuple[TracInScorer, nn.Module]) -> None:
        scorer, module = walked
        before, values = self.look(module), {name: p.detach().clone() for name, p in module.named_parameters()}
        direction = ValidationDirection([torch.randn(4, 3)], squares)
        scores = scorer.score(module, squares, [torch.randn(5, 3)], direction)
        assert self.look(module) == before
        assert all(torch.equal(p, values[name]) for name, p in module.named_parameters())
        now = ExactScorer().score(module, squares, [torch.randn(5, 3)], direction)
        assert not torch.allclose(scores, 0.2 * now)

    def test_after_an_error(self, walked: tuple[TracInScorer, nn.Module]) -> None:
        def losses(module: nn.Module, batch: Tensor) -> Tensor:
            raise KeyError("broken")

        scorer, module = walked
        before, values = self.look(module), {name: p.detach().clone() for name, p in module.named_parameters()}
        with pytest.raises(KeyError, match="broken"):
            scorer.score(module, losses, [torch.randn(5, 3)], values)
        assert self.look(module) == before
        assert all(torch.equal(p, values[name]) for name, p in module.named_parameters())

    def test_and_its_snapshots_too(self, walked: tuple[TracInScorer, nn.Module]) -> None:
        scorer, module = walked
        direction, batch = ValidationDirection([torch.randn(4, 3)], squares), torch.randn(5, 3)
        first = scorer.score(module, squares, [batch], direction)
        assert torch.equal(scorer.score(module, squares, [batch], direction), first)


class TestSnapshots:
    @staticmethod
    def kept(scorer: TracInScorer) -> list[Mapping[str, Tensor]]:
        return [one["parameters"] for one in scorer.state_dict()["path"]]

    def test_hold_what_is_trainable_alone(self) -> None:
        module, scorer = Blocks(), TracInScorer()
        module.blocks.requires_grad_(False)
        scorer.observe(module, 0.1)
        assert list(self.kept(scorer)[0]) == ["norm.weight", "norm.bias", "head.weight", "head.bias"]

    @pytest.mark.parametrize("device", [None, "cpu"])
    def test_are_copies(self, device: str | None) -> None:
        module, scorer = Blocks(), TracInScorer(device=device)
        scorer.observe(module, 0.1)
        for name, parameter in module.named_parameters():
            copied = self.kept(scorer)[0][name]
            assert copied.device.type == "cpu"
            assert not copied.requires_grad
            assert copied.data_ptr() != parameter.data_ptr()
            assert torch.equal(copied, parameter)

    def test_lie_where_they_are_told_to(self) -> None:
        scorer = TracInScorer(device="meta")
        scorer.observe(Blocks(), 0.1)
        assert {tensor.device.type for tensor in self.kept(scorer)[0].values()} == {"meta"}

    def test_survive_a_file_without_pickled_code(self, tmp_path: Path) -> None:
        module, scorer = weight_of(0.0), TracInScorer(snapshots=2)
        walk(scorer, module, (1.0, 1.0), (2.0, 0.5), (4.0, 0.25))
        torch.save(scorer.state_dict(), tmp_path / "path.pt")
        expected = scorer.score(module, halves, BATCHES, ONE)
        walk(scorer, module, (100.0, 100.0))  # what comes later is not in the file
        resumed = TracInScorer(snapshots=2)
        walk(resumed, module, (50.0, 50.0))  # what was there is gone
        resumed.load_state_dict(torch.load(tmp_path / "path.pt", weights_only=True))
        assert torch.equal(resumed.score(module, halves, BATCHES, ONE), expected)
        walk(resumed, module, (3.0, 2.0))  # and the oldest goes as ever: 0.25 * 4 + 2 * 3
        assert resumed.score(module, halves, BATCHES, ONE).tolist() == [7.0, 28.0, 63.0]

    def test_a_shorter_path_takes_up_the_newest(self) -> None:
        module, scorer, shorter = weight_of(0.0), TracInScorer(snapshots=3), TracInScorer(snapshots=1)
        walk(scorer, module, (1.0, 1.0), (2.0, 1.0), (3.0, 1.0))
        shorter.load_state_dict(scorer.state_dict())
        assert shorter.score(module, halves, BATCHES, ONE).tolist() == [3.0, 12.0, 27.0]

    def test_a_state_does_not_change_with_the_scorer(self) -> None:
        module, scorer = weight_of(0.0), TracInScorer(snapshots=1)
        walk(scorer, module, (1.0, 1.0))
        state = scorer.state_dict()
        walk(scorer, module, (2.0, 2.0))
        assert [(one["rate"], one["parameters"]["weight"].item()) for one in state["path"]] == [(1.0, 1.0)]


class TestRefusals:
    def test_an_iterator_cannot_be_read_once_a_snapshot(self) -> None:
        scorer, module = TracInScorer(), weight_of(0.0)
        walk(scorer, module, (1.0, 1.0))
        assert scorer.score(module, halves, iter(BATCHES), ONE).tolist() == [1.0, 4.0, 9.0]  # one will do
        walk(scorer, module, (2.0, 1.0))
        with pytest.raises(UsageError, match="batches = 'list_iterator': they are read once a snapshot: pass a list"):
            scorer.score(module, halves, iter(BATCHES), ONE)

    @pytest.mark.parametrize("other", ["other names", "frozen since"])
    def test_other_parameters_than_were_observed(self, other: str) -> None:
        scorer, module = TracInScorer(), Blocks()
        scorer.observe(module, 0.1)
        scored: nn.Module = nn.Linear(3, 2)
        if other == "frozen since":
            scored = module
            module.norm.requires_grad_(False)
        along = {name: torch.ones_like(p) for name, p in scored.named_parameters() if p.requires_grad}
        with pytest.raises(UsageError, match="snapshot = 'of other parameters': score the module that was observed"):
            scorer.score(scored, squares, [torch.randn(2, 3)], along)

    @pytest.mark.parametrize("snapshots", [0, -1])
    def test_no_snapshots(self, snapshots: int) -> None:
        with pytest.raises(UsageError, match=f"snapshots = {snapshots}: use a whole number of at least 1"):
            TracInScorer(snapshots)

    def test_an_unknown_backend(self) -> None:
        with pytest.raises(UsageError, match="backend = 'magic'"):
            TracInScorer(backend="magic")  # type: ignore[arg-type]
