"""What hooks can tell apart by episode, and what they must refuse: a score from hooks is right or is not given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from architectures import VOCABULARY, build
from small_modules import Flattened, Recurrent, assert_same, plain_scores, random_direction, squares
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from ippo.errors import UsageError
from ippo.functional import sft_loss, token_logprobs
from ippo.influence import ExactScorer, RandomProjectionScorer
from ippo.influence.hooks import UncoveredLayerError, hooked_backward
from ippo.influence.layer_formulas import Arguments, LayerFormula, ScaleFormula

Use = Callable[[Tensor, Tensor], Tensor]
"""Of inputs [n, 3] and a weight [4, 3] -> [n, 4]."""


class Borrowing(nn.Module):
    """Uses the weight of ``own`` once more, outside of its forward."""

    def __init__(self, use: Use) -> None:
        super().__init__()
        self.own, self.head, self.use = nn.Linear(3, 4), nn.Linear(4, 2), use

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.own(x) + self.use(x, self.own.weight)))


class Fused(torch.autograd.Function):
    """A kernel that takes a weight as it is, as fused losses take that of the output projection."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.T @ x


BORROWED: dict[str, Use] = {
    "by a function": functional.linear,
    "by keyword": lambda x, weight: functional.linear(x, weight=weight),
    "by an operator": lambda x, weight: torch.stack([x] * 4, 1).mul(weight).sum(2),
    "transposed": lambda x, weight: x @ weight.T,
    "in a list": lambda x, weight: functional.linear(x, torch.cat([weight, weight])[:4]),
    "in parts": lambda x, weight: torch.cat([functional.linear(x, part) for part in weight.chunk(2)], 1),
    "row by row": lambda x, weight: torch.stack([x @ row for row in weight], 1),
    "by a kernel": lambda x, weight: Fused.apply(x, weight),
}


class Positions(nn.Module):
    """One row of positions for the whole batch: an embedding of their numbers, or a layer over their features."""

    def __init__(self, layer: nn.Module, numbers: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.inputs, self.positions, self.numbers = nn.Linear(3, 4), layer, numbers

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inputs(x) + self.positions(self.numbers(x.shape[1])))


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, 1)).transpose(0, 1).cumsum(1)


class Scaled(nn.Module):
    """A learned parametrization."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.5))

    def forward(self, weight: Tensor) -> Tensor:
        return self.factor * weight


def scaled() -> nn.Module:
    layer = nn.Linear(3, 2)
    parametrize.register_parametrization(layer, "weight", Scaled())
    return nn.Sequential(layer)


# Each: the module, the shape of its batch, and what it is refused for. As many episodes as tokens where both fit.
REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "flattened rows": (Flattened, (4, 5, 3), r"'head': its output has shape \(20, 2\), .* the batch's 4 episodes"),
    "a tuple (GRU)": (lambda: Recurrent(nn.GRU), (4, 5, 3), "'cell': it returns a tuple"),
    "a tuple (LSTM)": (lambda: Recurrent(nn.LSTM), (4, 5, 3), "'cell': it returns a tuple"),
    "broadcast positions": (
        lambda: Positions(nn.Embedding(9, 4), lambda t: torch.arange(t)[None]),
        (4, 5, 3),
        r"'positions': its output has shape \(1, 5, 4\)",
    ),
    "positions": (
        lambda: Positions(nn.Embedding(9, 4), torch.arange),
        (4, 5, 3),
        r"'positions': its output has shape \(5, 4\)",
    ),
    "as many positions as episodes": (
        lambda: Positions(nn.Embedding(9, 4), torch.arange),
        (4, 4, 3),
        r"'positions': its output of shape \(4, 4\) has a row a position or a row an episode",
    ),
    "features of as many positions as episodes": (
        lambda: Positions(nn.Linear(1, 4), lambda t: torch.arange(float(t))[:, None]),
        (4, 4, 3),
        "'positions'",
    ),
    "time first": (TimeFirst, (4, 5, 3), r"'layer': its output has shape \(5, 4, 2\)"),
    "time first, as many steps as episodes": (TimeFirst, (4, 4, 3), "'layer'"),
    "weight norm": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2))),
        (2, 3),  # as many episodes as the weight has rows
        r"'0\.parametrizations\.weight': it computes another layer's weight",
    ),
    "a learned parametrization": (scaled, (2, 3), r"'0\.parametrizations\.weight.*'"),
    **{f"borrowed {how}": (partial(Borrowing, use), (4, 3), r"'own(\.weight)?'") for how, use in BORROWED.items()},
}


class TestRefusals:
    @pytest.mark.parametrize(("make", "shape", "reason"), REFUSED.values(), ids=REFUSED)
    def test_name_the_layer_and_the_remedy(self, make: Callable[[], nn.Module], shape: Any, reason: str) -> None:
        module, batch = make().eval(), torch.randn(shape)
        with pytest.raises(UsageError, match=rf"backend = 'ghost': it cannot cover {reason}.*; use backend='jvp'"):
            ExactScorer("ghost").score(module, squares, [batch], random_direction(module))

    @pytest.mark.parametrize(("make", "shape", "reason"), REFUSED.values(), ids=REFUSED)
    def test_do_not_stop_auto_which_tells_them(self, make: Callable[[], nn.Module], shape: Any, reason: str) -> None:
        module, batch, scorer = make().eval(), torch.randn(shape), ExactScorer()
        direction = random_direction(module)
        assert_same(scorer.score(module, squares, [batch], direction), plain_scores(module, batch, direction))
        assert not scorer.choice.startswith("ghost")

    def test_are_told_in_one_sentence(self) -> None:
        module, scorer = Flattened(), ExactScorer()
        scorer.score(module, squares, [torch.randn(4, 5, 3)], random_direction(module))
        assert scorer.choice == (
            "jvp: hooks cannot cover 'head', because its output has shape (20, 2), "
            "which does not start with the batch's 4 episodes"
        )

    def test_are_told_even_if_the_last_batch_is_covered(self) -> None:
        """One row of positions is right for one episode."""
        module, scorer = Positions(nn.Embedding(9, 4), lambda t: torch.arange(t)[None]), ExactScorer()
        batch, direction = torch.randn(4, 5, 3), random_direction(module)
        assert_same(scorer.score(module, squares, batch.split(3), direction), plain_scores(module, batch, direction))
        assert "'positions'" in scorer.choice

    def test_gpt2_that_numbers_positions_itself(self) -> None:
        def losses(module: nn.Module, ids: Tensor) -> Tensor:
            return sft_loss(
                token_logprobs(module(ids, use_cache=False).logits[:, :-1], ids[:, 1:]), torch.ones(len(ids), 5)
            )

        module, ids, scorer = build("gpt2"), torch.randint(VOCABULARY, (4, 6)), ExactScorer()
        direction = random_direction(module)
        with pytest.raises(UsageError, match=r"cannot cover 'transformer\.wpe': its output has shape \(1, 6, 32\)"):
            ExactScorer("ghost").score(module, losses, [ids], direction)
        expected = plain_scores(module, ids, direction, losses)
        assert_same(scorer.score(module, losses, [ids], direction), expected)
        assert scorer.choice.startswith("jvp: hooks cannot cover 'transformer.wpe'")

    def test_only_concern_what_is_scored(self) -> None:
        """A borrowed weight that is frozen, or outside of the subset, has no gradient to be missed."""
        module, batch = Borrowing(functional.linear), torch.randn(4, 3)
        direction = random_direction(module)
        head = {name: tensor for name, tensor in direction.items() if name.startswith("head")}
        scores = ExactScorer("ghost", parameters="^head").score(module, squares, [batch], direction)
        module.own.requires_grad_(False)
        assert_same(scores, plain_scores(module, batch, head))
        assert_same(ExactScorer("ghost").score(module, squares, [batch], head), scores)

    def test_hold_for_sketches_too(self) -> None:
        module = Flattened()
        with pytest.raises(UsageError, match="cannot cover 'head'"):
            RandomProjectionScorer().sketches(module, squares, [torch.randn(4, 5, 3)])


class Gated(nn.Module):
    """Owns a parameter of its own beside its children."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.inner, self.outer = nn.Parameter(torch.randn(4)), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(x)) * self.gate.exp())


class Gate(nn.Module):
    """Not linear in its parameters, but elementwise."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.shift = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate.exp() + self.shift


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 3), nn.LayerNorm(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.norm(torch.tanh(self.layer(self.norm(x)))))


class Reading(nn.Module):
    """Reads what is no value of its layers, and a value as a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.head.weight
        assert weight.dtype == next(self.parameters()).dtype
        assert weight.device == x.device
        assert weight.dim() == len(weight.size()) == 2
        with torch.no_grad():
            size = weight.norm()
        return self.head(self.layer(x.to(weight.dtype))) * weight.shape[1] / size


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(7, 4, padding_idx=2), nn.Linear(4, 7, bias=False)
        nn.init.normal_(self.words.weight)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        ids = (x * 3).long() % 7
        return self.head(torch.tanh(self.words(ids)))


class InPlace(nn.Module):
    """Residual sums written over a layer's output, as some language models save memory."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(x)
        hidden += x
        return self.outer(hidden)


def frozen_norm() -> nn.Module:
    norm = nn.LayerNorm(4)
    norm.weight.requires_grad_(False)
    return nn.Sequential(nn.Linear(3, 4), norm, nn.Tanh())


COVERED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(3, 9), nn.GELU(), nn.Linear(9, 2, bias=False)), (4, 5, 3)),
    "conv": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1, groups=1), nn.Tanh(), nn.Conv2d(3, 2, 2)), (4, 2, 6, 6)),
    "batch norm": (lambda: nn.Sequential(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4), nn.Conv1d(4, 2, 1)), (4, 3, 5)),
    "norm over two axes": (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm((5, 4)), nn.Tanh()), (4, 5, 3)),
    "norm with a frozen weight": (frozen_norm, (4, 5, 3)),
    "norms without a bias": (lambda: nn.Sequential(nn.LayerNorm(3, bias=False), nn.RMSNorm(3), nn.Tanh()), (4, 3)),
    "a parameter beside children": (Gated, (4, 3)),
    "a module used twice": (Twice, (4, 5, 3)),
    "shapes and constants read": (Reading, (4, 3)),
    "tied embeddings": (Tied, (4, 5)),
    "as many tokens as episodes": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (4, 4, 3)),
    "one episode": (Twice, (1, 5, 3)),
}
IN_PLACE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "relu": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Conv2d(2, 2, 2)), (4, 1, 5, 5)),
    "sum": (InPlace, (4, 3)),
}


class TestCovered:
    @pytest.mark.parametrize(("make", "shape"), COVERED.values(), ids=COVERED)
    def test_scores_are_those_of_plain_backwards(self, make: Callable[[], nn.Module], shape: Any) -> None:
        module, batch, scorer = make().eval(), torch.randn(shape), ExactScorer()
        direction = random_direction(module)
        assert_same(scorer.score(module, squares, [batch], direction), plain_scores(module, batch, direction))
        assert scorer.choice == "ghost: every trainable parameter acts inside a layer whose rows are the episodes"

    @pytest.mark.parametrize(("make", "shape"), IN_PLACE.values(), ids=IN_PLACE)
    def test_outputs_that_are_written_over(self, make: Callable[[], nn.Module], shape: Any) -> None:
        module, batch = make(), torch.randn(shape)
        direction = random_direction(module)
        scores = ExactScorer().score(module, squares, [batch], direction)
        assert_same(scores, plain_scores(module, batch, direction))

    @pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm, partial(nn.Linear, 3)], ids=["norm", "other", "linear"])
    @pytest.mark.parametrize("when", ["before", "after"])
    def test_hooks_of_the_user_count_once(self, kind: Callable[[int], nn.Module], when: str) -> None:
        """They may change what goes into a layer and what comes out of it."""
        layer = kind(3)
        module, batch = nn.Sequential(nn.Linear(3, 3), layer, nn.Tanh()), torch.randn(4, 3)
        if when == "before":
            layer.register_forward_pre_hook(lambda layer, args: (3 * args[0] + args[0] ** 2,))
        else:
            layer.register_forward_hook(lambda layer, args, output: 3 * output + output**2)
        direction = random_direction(module)
        scores = ExactScorer().score(module, squares, [batch], direction)
        assert_same(scores, plain_scores(module, batch, direction))

    def test_batches_and_other_modules_that_need_gradients_change_nothing(self) -> None:
        module, other, batch = nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(3, 3), torch.randn(4, 3)

        def losses(module: nn.Module, batch: Tensor) -> Tensor:
            return squares(module, other(batch))

        direction = random_direction(module)
        expected = plain_scores(module, batch, direction, losses)
        scores = ExactScorer("ghost").score(module, losses, [batch.requires_grad_()], direction)
        assert_same(scores, expected)
        assert batch.grad is None
        assert all(parameter.grad is None for parameter in other.parameters())

    def test_a_layer_that_scales_is_told_from_one_that_mixes(self) -> None:
        class Mixed(nn.Module):
            """Its parameter is a vector, too, but acts across features."""

            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.randn(4))

            def forward(self, x: Tensor) -> Tensor:
                return x * self.weight.softmax(0)

        for kind, scales in ((Gate, True), (Mixed, False)):
            layer, a, b = kind(), torch.randn(3, 5, 4), torch.randn(3, 5, 4)
            formula = LayerFormula("layer", layer, {name: name for name, _ in layer.named_parameters()})
            rows = formula.row_gradients(((a,), {}), b)
            assert ScaleFormula.fits(formula, ((a,), {}), b, rows) == scales
            if scales:
                found = ScaleFormula("layer", layer, formula.names).row_gradients(((a,), {}), b)
                for own, part in rows.items():
                    torch.testing.assert_close(found[own], part)
            assert not ScaleFormula.fits(
                formula, ((a,), {}), b * 0, formula.row_gradients(((a,), {}), b * 0)
            )  # proves nothing


class TestWatchedBackward:
    def test_shows_each_use_from_the_last_to_the_first(self) -> None:
        module, batch = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)
        seen: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []

        def note(formula: LayerFormula, arguments: Arguments, gradient: Tensor) -> None:
            seen.append((formula.name, tuple(arguments[0][0].shape), tuple(gradient.shape)))

        values = hooked_backward(module, lambda: squares(module, batch), note)
        torch.testing.assert_close(values, squares(module, batch).detach())
        assert not values.requires_grad
        assert seen == [("2", (5, 4), (5, 2)), ("0", (5, 3), (5, 4))]

    def test_gradients_are_those_of_the_sum(self) -> None:
        module, batch = nn.Sequential(nn.Linear(3, 1)), torch.randn(5, 3)
        found: list[Tensor] = []
        hooked_backward(module, lambda: squares(module, batch), lambda formula, arguments, b: found.append(b))
        torch.testing.assert_close(found[0], 2 * module(batch).detach())

    def test_shows_nothing_of_losses_that_are_constants_of_zero(self) -> None:
        seen: list[Any] = []
        hooked_backward(nn.Linear(3, 1), lambda: torch.zeros(4), lambda *layer: seen.append(layer))
        assert seen == []

    def test_inputs_that_are_written_over_are_refused(self) -> None:
        """What a layer saw is gone when its gradient arrives."""

        class Spent(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner, self.outer = nn.Linear(3, 3), nn.Linear(3, 3)

            def forward(self, x: Tensor) -> Tensor:
                hidden = self.inner(x) + 1
                output = self.outer(hidden)
                return output + hidden.mul_(2)

        module = Spent()
        with pytest.raises(UncoveredLayerError, match="cannot cover 'outer': its input is written over in place"):
            hooked_backward(module, lambda: squares(module, torch.randn(4, 3)), lambda *_: None)

    def test_names_the_layer_in_the_error(self) -> None:
        module = Flattened()
        with pytest.raises(UncoveredLayerError) as caught:
            hooked_backward(module, lambda: squares(module, torch.randn(4, 5, 3)), lambda *_: None)
        assert caught.value.layer == "head"
        assert caught.value.reason == "its output has shape (20, 2), which does not start with the batch's 4 episodes"


class TestLeavesNothingBehind:
    """Hooks, flags and gradients, whatever happens."""

    @staticmethod
    def look(module: nn.Module) -> list[Any]:
        hooks = [
            [len(part._forward_hooks), len(part._forward_pre_hooks), len(part._backward_hooks)]
            for part in module.modules()
        ]
        return [hooks, [(p.requires_grad, p.grad is None) for p in module.parameters()], torch.is_grad_enabled()]

    @pytest.fixture
    def module(self) -> nn.Module:
        """With a frozen layer, and a hook of the user's."""
        module = Borrowing(lambda x, weight: torch.zeros(len(x), 4))
        module.own.requires_grad_(False).register_forward_hook(lambda *_: None)
        return module

    def test_after_success(self, module: nn.Module) -> None:
        before = self.look(module)
        ExactScorer("ghost").score(module, squares, [torch.randn(4, 3)], random_direction(module))
        assert self.look(module) == before

    @pytest.mark.parametrize("place", ["losses", "layer", "formula"])
    def test_after_an_error(self, module: nn.Module, place: str) -> None:
        def fail(*_: Any) -> Any:
            raise KeyError("broken")

        def losses() -> Tensor:
            values = squares(module, torch.randn(4, 3))
            return fail() if place == "losses" else values

        if place == "layer":
            module.get_submodule("head").register_forward_pre_hook(fail)
        before = self.look(module)
        with pytest.raises(KeyError, match="broken"):
            hooked_backward(module, losses, fail if place == "formula" else lambda *_: None)
        assert self.look(module) == before

    @pytest.mark.parametrize("name", ["flattened rows", "a tuple (GRU)", "borrowed by a function"])
    def test_after_a_refusal(self, name: str) -> None:
        make, shape, _ = REFUSED[name]
        module = make()
        before = self.look(module)
        with pytest.raises(UncoveredLayerError):
            hooked_backward(module, lambda: squares(module, torch.randn(shape)), lambda *_: None)
        assert self.look(module) == before
        squares(module, torch.randn(shape)).sum().backward()  # and it trains as ever
        assert all(parameter.grad is not None for parameter in module.parameters())

    @pytest.mark.parametrize("backend", ["auto", "jvp", "ghost", "loop", "fd"])
    def test_in_a_layer_that_two_names_share(self, backend: Any) -> None:
        layer = nn.Linear(3, 3)
        module, parameters = nn.Sequential(layer, nn.Tanh(), layer), list(layer.parameters())
        batch, direction = torch.randn(4, 3), random_direction(module)
        expected = plain_scores(module, batch, direction)
        scores = ExactScorer(backend).score(module, squares, [batch], direction)
        torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-4)
        assert [id(p) for p in module.parameters()] == [id(p) for p in parameters]

    def test_after_losses_that_are_not_one_an_episode(self, module: nn.Module) -> None:
        before = self.look(module)
        with pytest.raises(UsageError, match="return one loss for each episode"):
            hooked_backward(module, lambda: module(torch.randn(4, 3)), lambda *_: None)
        assert self.look(module) == before
