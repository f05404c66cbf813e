"""Sketches against dense ones: every gradient by a plain backward, every map written out."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from architectures import VOCABULARY, build
from small_modules import Losses, Recurrent, WithTable, assert_same, dots, plain_gradients, squares
from torch import Tensor, nn

from ippo.errors import UsageError
from ippo.influence import (
    BufferDirection,
    ExactScorer,
    RandomProjectionScorer,
    Sketches,
    ValidationDirection,
    causal_lm_losses,
)

Gradients = dict[str, Tensor]
"""[n, *shape] by parameter."""


def language_losses(model: nn.Module, ids: Tensor) -> Tensor:
    return causal_lm_losses(model, {"input_ids": ids})


def dense(gradients: Gradients, rank: int, seed: int = 0) -> Tensor:
    """[n, k] P G Q' of every matrix and P g of every vector, one parameter after another.

    The maps are drawn in the order of the parameters: N(0, 1 / rows) numbers, or the identity where an axis is no
    longer than the rows that it would get.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int, axis: int) -> Tensor:
        return torch.eye(axis) if axis <= rows else torch.randn(rows, axis, generator=generator) / math.sqrt(rows)

    parts = []
    for gradient in gradients.values():
        if gradient.dim() == 2:
            parts.append(gradient @ draw(rank**2, gradient.shape[1]).T)
        else:
            matrices = gradient.flatten(2)
            left, right = draw(rank, matrices.shape[1]), draw(rank, matrices.shape[2])
            parts.append(torch.einsum("ko,noi,mi->nkm", left, matrices, right).flatten(1))
    return torch.cat(parts, 1)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


class Padded(nn.Module):
    """An embedding that never trains its row 0."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(6, 5, padding_idx=0), nn.Linear(5, 6, bias=False)
        nn.init.normal_(self.words.weight)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.words(ids)))


def norms() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 20), nn.LayerNorm(20), nn.Tanh(), nn.Linear(20, 5, bias=False))


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 9, 3), nn.BatchNorm2d(9), nn.Tanh(), nn.Conv2d(9, 4, 2)).eval()


# Each: the module, its losses, and a batch. GPT-2 is made of Conv1D, Llama of Linear; both tie their embeddings.
CASES: dict[str, Callable[[], tuple[nn.Module, Losses, Tensor]]] = {
    "linear, norm and bias": lambda: (norms(), squares, torch.randn(4, 7, 6)),
    "no time axis": lambda: (norms(), squares, torch.randn(4, 6)),
    "norm over two axes": lambda: (nn.Sequential(nn.LayerNorm((7, 6)), nn.Tanh()), squares, torch.randn(4, 7, 6)),
    "convolution": lambda: (convolutions(), squares, torch.randn(4, 2, 6, 6)),
    "gpt2": lambda: (build("gpt2"), language_losses, torch.randint(VOCABULARY, (4, 6))),
    "llama": lambda: (build("llama"), language_losses, torch.randint(VOCABULARY, (4, 6))),
    "a module used twice, and one not at all": lambda: (Twice(), squares, torch.randn(4, 5)),
    "tied embedding with padding": lambda: (Padded(), squares, torch.tensor([[0, 3, 1], [2, 2, 0], [5, 4, 3]])),
    "a table beside the inputs": lambda: (WithTable(), squares, torch.randn(4, 5, 3)),
}


class TestSketches:
    def test_refuse_a_layer_whose_table_has_as_many_rows_as_there_are_episodes(self) -> None:
        """Whether its rows are episodes cannot be told from its shape; the trial tells it."""
        with pytest.raises(UsageError, match="the rows that its hooks see are not the episodes"):
            RandomProjectionScorer().sketches(WithTable(), squares, [torch.randn(4, 4, 3)])

    @pytest.mark.parametrize("make", CASES.values(), ids=CASES)
    def test_are_projected_gradients(self, make: Callable[[], tuple[nn.Module, Losses, Tensor]]) -> None:
        module, losses, batch = make()
        sketches = RandomProjectionScorer(rank=3, seed=5).sketches(module, losses, [batch])
        assert len(sketches) == len(batch)
        assert sketches.rows.dtype == torch.float32
        assert not sketches.rows.requires_grad
        assert_same(sketches.rows, dense(plain_gradients(module, batch, losses), rank=3, seed=5))

    @pytest.mark.parametrize("make", CASES.values(), ids=CASES)
    def test_give_exact_scores_where_no_axis_is_longer_than_the_rank(
        self, make: Callable[[], tuple[nn.Module, Losses, Tensor]]
    ) -> None:
        module, losses, batch = make()
        direction = {name: torch.randn_like(parameter) for name, parameter in module.named_parameters()}
        scores = RandomProjectionScorer(rank=VOCABULARY * 2).score(module, losses, [batch], direction)
        assert_same(scores, dots(plain_gradients(module, batch, losses), direction))

    def test_of_frozen_parameters_there_are_none(self) -> None:
        module, batch = norms(), torch.randn(4, 6)
        module.get_submodule("0").requires_grad_(False)
        sketches = RandomProjectionScorer(rank=3).sketches(module, squares, [batch])
        assert_same(sketches.rows, dense(plain_gradients(module, batch), rank=3))

    def test_of_a_part_of_the_parameters(self) -> None:
        module, batch, scorer = norms(), torch.randn(4, 6), RandomProjectionScorer(rank=3, parameters=r"^[13]\.")
        gradients = plain_gradients(module, batch)
        part = {name: gradient for name, gradient in gradients.items() if name[0] in "13"}
        assert_same(scorer.sketches(module, squares, [batch]).rows, dense(part, rank=3))
        along = {name: torch.randn_like(parameter) for name, parameter in module.named_parameters()}
        expected = dense(part, rank=3) @ dense({name: along[name][None] for name in part}, rank=3)[0]
        assert_same(scorer.score(module, squares, [batch], along), expected)

    def test_leave_the_module_as_it_was(self) -> None:
        module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
        batch, scorer = torch.randn(4, 3), RandomProjectionScorer()
        first = scorer.sketches(module, squares, [batch]).rows
        assert torch.equal(scorer.sketches(module, squares, [batch]).rows, first)  # without dropout
        assert all(part.training for part in module.modules())
        assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())

    def test_by_hand(self) -> None:
        """w = 3: gradients 3 and 12, which one number each sketches exactly; their mean is 7.5."""
        module = nn.Linear(1, 1, bias=False)
        nn.init.constant_(module.weight, 3.0)
        batches, scorer = [torch.tensor([[1.0], [2.0]])], RandomProjectionScorer(rank=1)

        def halves(module: nn.Module, x: Tensor) -> Tensor:
            return (module(x) ** 2 / 2).flatten()

        sketches = scorer.sketches(module, halves, batches)
        assert sketches.rows.tolist() == [[3.0], [12.0]]
        assert sketches.leave_one_out().tolist() == [36.0, 36.0]
        assert sketches.similarity().tolist() == [[1.0, 1.0], [1.0, 1.0]]
        assert scorer.score(module, halves, batches, BufferDirection()).tolist() == [22.5, 90.0]


class TestScores:
    @pytest.fixture
    def module(self) -> nn.Module:
        return norms()

    @pytest.fixture
    def batch(self) -> Tensor:
        return torch.randn(12, 6)

    @pytest.fixture
    def direction(self, module: nn.Module) -> Gradients:
        return ValidationDirection([torch.randn(9, 6)], squares).compute(module)

    def test_are_dot_products_of_sketches(self, module: nn.Module, batch: Tensor, direction: Gradients) -> None:
        scores = RandomProjectionScorer(rank=2, seed=3).score(module, squares, [batch], direction)
        rows = dense(plain_gradients(module, batch), rank=2, seed=3)
        reference = dense({name: tensor[None] for name, tensor in direction.items()}, rank=2, seed=3)[0]
        assert_same(scores, rows @ reference)

    def test_take_anything_that_computes_a_direction(self, module: nn.Module, batch: Tensor) -> None:
        scorer, gold = RandomProjectionScorer(rank=2), ValidationDirection([torch.randn(9, 6)], squares)
        expected = scorer.score(module, squares, [batch], gold.compute(module))
        assert_same(scorer.score(module, squares, [batch], gold), expected)

    def test_are_right_on_average(self, module: nn.Module, batch: Tensor, direction: Gradients) -> None:
        """Over 200 maps the mean lies within three standard errors of the exact score."""
        exact = dots(plain_gradients(module, batch), direction)
        scorers = [RandomProjectionScorer(rank=2, seed=seed) for seed in range(200)]
        scores = torch.stack([scorer.score(module, squares, [batch], direction) for scorer in scorers])
        errors = scores.std(0) / math.sqrt(len(scores))
        assert (errors < exact.abs().max()).all()
        assert ((scores.mean(0) - exact).abs() < 3 * errors).all()

    def test_agree_better_at_a_higher_rank(self, module: nn.Module, batch: Tensor, direction: Gradients) -> None:
        exact = dots(plain_gradients(module, batch), direction)

        def agreement(rank: int) -> float:
            scorers = [RandomProjectionScorer(rank, seed) for seed in range(20)]
            scores = [scorer.score(module, squares, [batch], direction) for scorer in scorers]
            return float(torch.stack([torch.corrcoef(torch.stack([one, exact]))[0, 1] for one in scores]).mean())

        found = [agreement(rank) for rank in (1, 2, 4, 16)]
        assert found == sorted(found)
        assert found[0] < 0.7 < 0.9 < found[-1]

    def test_depend_on_the_seed_alone(self, module: nn.Module, batch: Tensor) -> None:
        def rows(seed: int) -> Tensor:
            torch.manual_seed(torch.randint(1000, ()).item())  # draws elsewhere do not matter
            return RandomProjectionScorer(rank=2, seed=seed).sketches(module, squares, [batch]).rows

        before = torch.get_rng_state()
        RandomProjectionScorer(rank=2).sketches(module, squares, [batch])
        assert torch.equal(torch.get_rng_state(), before)  # and none elsewhere are disturbed
        assert torch.equal(rows(1), rows(1))
        assert not torch.allclose(rows(1), rows(2))

    @pytest.mark.parametrize("size", [1, 5, 12])
    def test_micro_batches_do_not_matter(
        self, module: nn.Module, batch: Tensor, direction: Gradients, size: int
    ) -> None:
        scorer = RandomProjectionScorer(rank=2)
        expected = scorer.score(module, squares, [batch], direction)
        assert_same(scorer.score(module, squares, batch.split(size), direction), expected)
        assert_same(scorer.score(module, squares, iter(batch.split(size)), direction), expected)  # read once

    def test_no_episodes_no_scores(self, module: nn.Module, direction: Gradients) -> None:
        scorer = RandomProjectionScorer()
        assert scorer.score(module, squares, [], direction).tolist() == []
        assert len(scorer.sketches(module, squares, [])) == 0

    def test_leave_each_episode_out_of_the_direction_or_refuse_to(self, module: nn.Module, batch: Tensor) -> None:
        direction = BufferDirection(leave_one_out=True)
        expected = ExactScorer("loop").score(module, squares, [batch], direction)
        try:
            scores = RandomProjectionScorer(rank=64).score(module, squares, [batch], direction)  # exact
        except UsageError:
            return
        assert_same(scores, expected)


class TestComparisons:
    """On exact sketches of five episodes, of which the last repeats the second."""

    @pytest.fixture
    def gradients(self) -> Tensor:
        """[n, p]"""
        module, losses, batch = self.case()
        return torch.cat([gradient.flatten(1) for gradient in plain_gradients(module, batch, losses).values()], 1)

    @pytest.fixture
    def sketches(self) -> Sketches:
        module, losses, batch = self.case()
        return RandomProjectionScorer(rank=64).sketches(module, losses, batch.split(2))

    @staticmethod
    def case() -> tuple[nn.Module, Losses, Tensor]:
        torch.manual_seed(0)
        batch = torch.randn(5, 6)
        batch[4] = batch[1]
        return norms(), squares, batch

    def test_leave_one_out(self, sketches: Sketches, gradients: Tensor) -> None:
        expected = []
        for row in range(5):
            others = torch.cat([gradients[:row], gradients[row + 1 :]]).mean(0)
            expected.append(gradients[row] @ others)
        assert_same(sketches.leave_one_out(), torch.stack(expected))

    def test_similarity(self, sketches: Sketches, gradients: Tensor) -> None:
        expected = torch.cosine_similarity(gradients[:, None], gradients[None], dim=2)
        torch.testing.assert_close(sketches.similarity(), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(expected.diagonal(), torch.ones(5))

    def test_duplicates(self, sketches: Sketches) -> None:
        assert sketches.duplicates() == [(1, 4)]
        assert sketches.duplicates(threshold=-2.0) == [(i, j) for i in range(5) for j in range(i + 1, 5)]

    def test_duplicates_of_short_sketches(self) -> None:
        module, losses, batch = self.case()
        assert (1, 4) in RandomProjectionScorer(rank=2).sketches(module, losses, [batch]).duplicates()

    def test_by_hand(self) -> None:
        sketches = Sketches(torch.tensor([[3.0, 4.0], [4.0, -3.0], [6.0, 8.0], [0.0, 0.0]]))
        expected = [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]  # what has no gradient is like nothing
        torch.testing.assert_close(sketches.similarity(), torch.tensor(expected).float())
        assert sketches.duplicates() == [(0, 2)]
        assert sketches.leave_one_out().tolist() == pytest.approx([50 / 3, 0.0, 50 / 3, 0.0])

    def test_leaving_one_out_of_one(self) -> None:
        with pytest.raises(UsageError, match="sketches = 'of 1 episode': leaving one out needs at least two"):
            Sketches(torch.ones(1, 3)).leave_one_out()


class TestRefusals:
    @pytest.mark.parametrize("rank", [0, -1])
    def test_no_rank(self, rank: int) -> None:
        with pytest.raises(UsageError, match=f"rank = {rank}: use a whole number of at least 1"):
            RandomProjectionScorer(rank)

    def test_a_layer_that_hooks_cannot_cover_is_named(self) -> None:
        with pytest.raises(UsageError, match="cannot cover 'cell': it returns a tuple"):
            RandomProjectionScorer().sketches(Recurrent(), squares, [torch.randn(4, 5, 3)])
