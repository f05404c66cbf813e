"""Which backend `auto` takes for which layers: scores are those of one backward a row whatever comes, and the loop is
taken only where nothing faster is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_modules import Flattened, Recurrent, assert_same, random_direction, squares
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ippo.errors import UsageError
from ippo.influence import ExactScorer, RandomProjectionScorer, score_and_backward
from ippo.influence.hook_check import PROBED_EVERY, PROBED_FIRST


class Of(nn.Module):
    """Parts, and what is done with them."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Any) -> Tensor:
        return self.function(self, x)


class OwnTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(20, 8))

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight[ids]


class Exp(torch.autograd.Function):
    """Without a forward derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0].exp()


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(0.1 * torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return Exp.apply(x * self.scale)


def sorted_inside(self: Any, x: Tensor) -> Tensor:
    """By the first number of a row, as code for packed sequences sorts by length; and back."""
    order = x[:, 0, 0].argsort()
    return self.head(torch.tanh(self.inner(x[order]))[order.argsort()])


def packed(self: Any, x: Tensor) -> Tensor:
    rows = pack_padded_sequence(x, torch.tensor([5, 3, 2, 4]), batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(self.cell(rows)[0], batch_first=True)[0]


def masked_gradient() -> nn.Module:
    table = nn.Embedding(20, 8)
    table.weight.register_hook(lambda gradient: gradient * (torch.arange(20) > 5).unsqueeze(1))
    return nn.Sequential(table, nn.Tanh(), nn.Linear(8, 2))


def attention() -> nn.Module:
    return Of(lambda self, x: self.a(x, x, x, need_weights=False)[0], a=nn.MultiheadAttention(8, 2, batch_first=True))


def coupled_in_the_middle(module: nn.Module, batch: Tensor) -> Tensor:
    """The second and the third row lean on each other, the first and the last on none."""
    values = module(batch).flatten(1).sum(1)
    pair = values[[0, 2, 1, 3]]
    return values**2 - 0.01 * values * torch.where(torch.tensor([False, True, True, False]), pair, 0.0)


def text() -> Tensor:
    return torch.randint(20, (4, 5))


def vectors() -> Tensor:
    return torch.randn(4, 5, 8)


# Each: the module, its batch, and the backend that is taken.
ZOO: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], str]] = {
    "an own table": (lambda: nn.Sequential(OwnTable(), nn.Tanh(), nn.Linear(8, 2)), text, "jvp"),
    "nn.MultiheadAttention": (attention, vectors, "jvp"),
    "nn.TransformerEncoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
        vectors,
        "jvp",
    ),
    "nn.LSTM": (lambda: Of(lambda self, x: self.cell(x)[0], cell=nn.LSTM(8, 4, 2, batch_first=True)), vectors, "jvp"),
    "nn.GRU": (lambda: Of(lambda self, x: self.cell(x)[0], cell=nn.GRU(8, 4, batch_first=True)), vectors, "jvp"),
    "packed sequences": (lambda: Of(packed, cell=nn.LSTM(8, 4, batch_first=True)), vectors, "jvp"),
    "nn.EmbeddingBag": (lambda: nn.Sequential(nn.EmbeddingBag(20, 8), nn.Linear(8, 2)), text, "ghost"),
    "a function of one's own in a layer": (lambda: nn.Sequential(nn.Linear(8, 8), Gate()), vectors, "ghost"),
    "a function of one's own between layers": (
        lambda: Of(lambda self, x: self.b(Exp.apply(0.1 * self.a(x))), a=nn.Linear(8, 8), b=nn.Linear(8, 2)),
        vectors,
        "ghost",
    ),
    "rows sorted inside": (lambda: Of(sorted_inside, inner=nn.Linear(8, 8), head=nn.Linear(8, 2)), vectors, "jvp"),
    "batch norm": (lambda: nn.Sequential(nn.Conv1d(5, 4, 3), nn.BatchNorm1d(4), nn.Tanh()), vectors, "ghost"),
    "a hook that masks a gradient": (masked_gradient, text, "loop"),
    "gradients scaled by frequency": (
        lambda: nn.Sequential(nn.Embedding(20, 8, scale_grad_by_freq=True), nn.Tanh(), nn.Linear(8, 2)),
        text,
        "loop",
    ),
    "a whole model": (lambda: nn.Sequential(nn.Embedding(20, 8), nn.LayerNorm(8), nn.Linear(8, 2)), text, "ghost"),
}


def loop(module: nn.Module, batch: Tensor, direction: dict[str, Tensor], losses: Any = squares) -> Tensor:
    """One plain backward for each loss of the batch; shares no code with ippo."""
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    scores = []
    for value in losses(module, batch):
        found = torch.autograd.grad(value, list(parameters.values()), retain_graph=True, allow_unused=True)
        parts = [(g * direction[name]).sum() for name, g in zip(parameters, found, strict=True) if g is not None]
        scores.append(torch.stack(parts).sum())
    return torch.stack(scores)


class TestAuto:
    @pytest.mark.parametrize(("make", "draw", "backend"), ZOO.values(), ids=ZOO)
    def test_is_right_and_takes_the_fastest_that_is(
        self, make: Callable[[], nn.Module], draw: Callable[[], Tensor], backend: str
    ) -> None:
        module, batches, scorer = make().eval(), [draw(), draw()], ExactScorer()
        direction = random_direction(module)
        expected = torch.cat([loop(module, batch, direction) for batch in batches])
        assert_same(scorer.score(module, squares, batches, direction), expected, 1e-5)
        assert scorer.choice.startswith(f"{backend}: "), scorer.choice

    @pytest.mark.parametrize(("make", "draw", "backend"), ZOO.values(), ids=ZOO)
    def test_each_other_way_is_right_or_refuses_by_name(
        self, make: Callable[[], nn.Module], draw: Callable[[], Tensor], backend: str
    ) -> None:
        module, batch = make().eval(), draw()
        direction = random_direction(module)
        expected = loop(module, batch, direction)
        refused: dict[str, str] = {}
        ways: dict[str, Callable[[], Tensor]] = {
            "ghost": lambda: ExactScorer("ghost").score(module, squares, [batch], direction),
            "projection": lambda: RandomProjectionScorer(rank=400).score(module, squares, [batch], direction),
            "fused": lambda: score_and_backward(module, squares, batch, direction, torch.ones_like),
            "jvp": lambda: ExactScorer("jvp").score(module, squares, [batch], direction),
        }
        for name, score in ways.items():
            try:
                assert_same(score(), expected, 1e-4)
            except UsageError as refusal:
                refused[name] = str(refusal)
        hooks = {"ghost", "projection", "fused"}
        assert refused.keys() & hooks == (set() if backend == "ghost" else hooks)
        assert all("cannot cover" in refused[name] for name in refused.keys() & hooks)
        assert ("jvp" in refused) >= (backend == "loop")

    def test_a_loss_that_couples_two_rows_in_the_middle(self) -> None:
        module, batch, scorer = nn.Linear(8, 2), torch.randn(4, 8), ExactScorer()
        direction = random_direction(module)
        expected = loop(module, batch, direction, coupled_in_the_middle)
        assert_same(scorer.score(module, coupled_in_the_middle, [batch], direction), expected)
        assert "the rows that its hooks see are not the episodes" in scorer.choice

    def test_a_layout_that_turns_time_first_later(self) -> None:
        def forward(self: Any, x: Tensor) -> Tensor:
            if x.shape[1] > 3:
                return self.head(torch.tanh(self.inner(x.transpose(0, 1)).transpose(0, 1)))
            return self.head(torch.tanh(self.inner(x)))

        module, scorer = Of(forward, inner=nn.Linear(8, 8), head=nn.Linear(8, 1)), ExactScorer()
        batches = [torch.randn(4, 3, 8)] * (PROBED_FIRST + 2) + [torch.randn(4, 4, 8)]
        direction = random_direction(module)
        expected = torch.cat([loop(module, batch, direction) for batch in batches])
        assert_same(scorer.score(module, squares, batches, direction), expected)
        assert scorer.choice.startswith("jvp: hooks cannot cover 'inner'")

    @pytest.mark.parametrize("once", [False, True], ids=["a list", "a generator"])
    def test_batches_since_the_last_probe_are_scored_anew_when_one_fails(self, once: bool) -> None:
        """Rows are out of order in the last batches of a call alone, of which only the very last is probed."""
        module, scorer = ZOO["rows sorted inside"][0](), ExactScorer()
        direction = random_direction(module)
        in_order = torch.randn(4, 5, 8)
        in_order = in_order[in_order[:, 0, 0].argsort()]
        quiet = PROBED_EVERY - 4
        batches = [*[in_order] * quiet, *(in_order[[2, 0, 3, 1]] * (1 + k) for k in range(4))]
        expected = torch.cat([loop(module, batch, direction) for batch in batches])
        given: Any = iter(batches) if once else batches
        found = scorer.score(module, squares, given, direction)
        assert scorer.choice.startswith("jvp: hooks cannot cover 'inner'")
        assert_same(found, expected)

    def test_what_refused_once_is_not_asked_again(self) -> None:
        class Counting(Flattened):
            calls = 0

            def forward(self, x: Tensor) -> Tensor:
                self.calls += 1
                return super().forward(x)

        module, batch, scorer = Counting(), torch.randn(4, 5, 3), ExactScorer()
        direction = random_direction(module)
        scorer.score(module, squares, [batch], direction)
        module.calls = 0
        scorer.score(module, squares, [batch, batch], direction)
        assert module.calls == 2  # one forward-mode pass each
        module.head.bias.requires_grad_(False)  # another question
        scorer.score(module, squares, [batch], direction)
        assert module.calls > 3

    def test_a_batch_of_one_row_is_not_tried_at_each_step(self) -> None:
        module, scorer, calls = nn.Linear(3, 2), ExactScorer(), []
        direction = random_direction(module)

        def losses(module: nn.Module, batch: Tensor) -> Tensor:
            calls.append(len(batch))
            return squares(module, batch)

        scorer.score(module, losses, [torch.randn(1, 3)], direction)
        calls.clear()
        scorer.score(module, losses, torch.randn(5, 3).split(1), direction)
        assert calls == [1] * 5
        batch = torch.randn(4, 3)
        assert_same(scorer.score(module, losses, [batch], direction), loop(module, batch, direction))

    def test_an_error_of_the_users_own_is_told_as_it_is(self) -> None:
        def losses(module: nn.Module, batch: Tensor) -> Tensor:
            raise KeyError("label")

        module = Recurrent()
        with pytest.raises(KeyError, match="label"):
            ExactScorer().score(module, losses, [torch.randn(4, 5, 3)], random_direction(module))


def test_forward_mode_is_held_to_a_backward_once() -> None:
    module, batch = masked_gradient(), text()
    with pytest.raises(UsageError, match=r"backend = 'jvp': forward mode does not give the gradient .*backend='loop'"):
        ExactScorer("jvp").score(module, squares, [batch], random_direction(module))


def test_an_operation_without_a_forward_derivative_is_told_by_name() -> None:
    module, batch = nn.Sequential(nn.EmbeddingBag(20, 8), nn.Linear(8, 2)), text()
    with pytest.raises(
        UsageError, match=r"'jvp': torch has no forward derivative of _embedding_bag: use backend='auto'"
    ):
        ExactScorer("jvp").score(module, squares, [batch], random_direction(module))
