"""One forward and one backward against two: scoring first, then a plain backward of what is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from architectures import VOCABULARY, build, with_lora
from small_modules import Flattened, Losses, assert_same, random_direction, squares
from torch import Tensor, nn

from ippo.errors import UsageError
from ippo.influence import BufferDirection, ExactScorer, ValidationDirection, causal_lm_losses, score_and_backward

Case = tuple[nn.Module, Losses, Any]


def mlp() -> Case:
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 2)), squares, torch.randn(5, 3)


def cnn() -> Case:
    layers = (nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    return nn.Sequential(*layers).eval(), squares, torch.randn(5, 1, 4, 4)


def language(model: nn.Module) -> Case:
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]])
    return model, causal_lm_losses, {"input_ids": torch.randint(VOCABULARY, (4, 6)), "attention_mask": mask}


CASES: dict[str, Callable[[], Case]] = {
    "mlp": mlp,
    "cnn": cnn,
    "tied llama": lambda: language(build("llama")),
    "gpt2": lambda: language(build("gpt2")),
    "lora": lambda: language(with_lora(build("llama"))),
}
WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "kept or dropped": lambda scores: (scores > 0) / (scores > 0).sum().clamp(min=1),
    "in proportion": lambda scores: scores.relu() / scores.relu().mean(),
    "of any sign": lambda scores: scores.sign() * 2.5,
}


def in_two_passes(case: Case, direction: Mapping[str, Tensor], weigh: Callable[[Tensor], Tensor]) -> Tensor:
    """Scores by a backward an episode; then the weighted losses' plain backward fills ``.grad``."""
    module, losses, batch = case
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    values, scores = losses(module, batch), []
    for value in values:
        gradients = torch.autograd.grad(value, list(parameters.values()), retain_graph=True)
        along = zip(parameters, gradients, strict=True)
        scores.append(torch.stack([(g * direction[name]).sum() for name, g in along if name in direction]).sum())
    (weigh(torch.stack(scores)) * values).sum().backward()
    return torch.stack(scores)


def assert_same_gradients(module: nn.Module, twin: nn.Module) -> None:
    """Against the largest of all gradients: some are zero but for rounding, as those of biases under a softmax."""
    largest = max(float(p.grad.abs().max()) for p in twin.parameters() if p.grad is not None)
    assert largest > 0
    for (name, parameter), expected in zip(module.named_parameters(), twin.parameters(), strict=True):
        assert (parameter.grad is None) == (expected.grad is None), name
        if parameter.grad is not None and expected.grad is not None:
            assert parameter.grad.dtype == parameter.dtype
            assert (parameter.grad - expected.grad).abs().max() <= 1e-5 * largest, name


class TestEqualsScoringFirst:
    @pytest.mark.parametrize("weigh", WEIGHTS.values(), ids=WEIGHTS)
    @pytest.mark.parametrize("name", CASES)
    def test_in_scores_and_gradients(self, name: str, weigh: Callable[[Tensor], Tensor]) -> None:
        module, losses, batch = CASES[name]()
        twin, direction = copy.deepcopy(module), random_direction(module)
        expected = in_two_passes((twin, losses, batch), direction, weigh)
        assert (expected > 0).any()
        scores = score_and_backward(module, losses, batch, direction, weigh)
        assert scores.dtype == torch.float32
        assert not scores.requires_grad
        assert_same(scores, expected)
        assert_same_gradients(module, twin)

    def test_over_two_micro_batches(self) -> None:
        module, losses, batch = mlp()
        twin, direction, weigh = copy.deepcopy(module), random_direction(module), WEIGHTS["of any sign"]
        scores = [score_and_backward(module, losses, part, direction, weigh) for part in batch.split(3)]
        assert_same(torch.cat(scores), in_two_passes((twin, losses, batch), direction, weigh))
        assert_same_gradients(module, twin)

    def test_with_a_computed_direction(self) -> None:
        module, losses, batch = mlp()
        direction = ValidationDirection([torch.randn(4, 3)], squares)
        expected = ExactScorer("loop").score(module, losses, [batch], direction)
        assert_same(score_and_backward(module, losses, batch, direction, WEIGHTS["kept or dropped"]), expected)

    def test_inside_no_grad(self) -> None:
        module, losses, batch = mlp()
        twin, direction, weigh = copy.deepcopy(module), random_direction(module), WEIGHTS["in proportion"]
        in_two_passes((twin, losses, batch), direction, weigh)
        with torch.no_grad():
            score_and_backward(module, losses, batch, direction, weigh)
        assert_same_gradients(module, twin)

    def test_leaving_each_episode_out_of_the_direction_or_refusing_to(self) -> None:
        module, losses, batch = mlp()
        direction = BufferDirection(leave_one_out=True)
        expected = ExactScorer("loop").score(module, losses, [batch], direction)
        try:
            scores = score_and_backward(module, losses, batch, direction, torch.ones_like)
        except UsageError:
            return
        assert_same(scores, expected)

    def test_by_hand(self) -> None:
        """w = 3, losses w x ** 2 / 2: gradients 1/2 and 2, scores 1 and 4 along 2, weights 10 and 40."""
        module = nn.Linear(1, 1, bias=False)
        nn.init.constant_(module.weight, 3.0)
        batch, along = torch.tensor([[1.0], [2.0]]), {"weight": torch.full((1, 1), 2.0)}
        scores = score_and_backward(module, lambda m, x: (m(x) * x / 2).flatten(), batch, along, lambda s: 10 * s)
        assert scores.tolist() == [1.0, 4.0]
        assert module.weight.grad is not None
        assert module.weight.grad.item() == 10 * 0.5 + 40 * 2.0


def test_runs_the_module_once() -> None:
    module, losses, batch = mlp()
    score_and_backward(module, losses, batch, random_direction(module), WEIGHTS["in proportion"])  # with its trial
    calls: list[int] = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    score_and_backward(module, losses, batch, random_direction(module), WEIGHTS["in proportion"])
    assert len(calls) == 1


class TestGradients:
    def test_add_to_those_that_are_there(self) -> None:
        module, losses, batch = mlp()
        twin, direction = copy.deepcopy(module), random_direction(module)
        for one in (module, twin):
            for parameter in one.parameters():
                parameter.grad = torch.full_like(parameter, 0.5)
        in_two_passes((twin, losses, batch), direction, torch.ones_like)
        score_and_backward(module, losses, batch, direction, torch.ones_like)
        assert_same_gradients(module, twin)

    @pytest.mark.parametrize("name", CASES)
    def test_are_zero_if_all_is_dropped(self, name: str) -> None:
        module, losses, batch = CASES[name]()
        scores = score_and_backward(module, losses, batch, random_direction(module), torch.zeros_like)
        assert (scores != 0).all()
        for parameter in module.parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None
                assert not parameter.grad.any()

    def test_of_frozen_parameters_are_none(self) -> None:
        module, losses, batch = mlp()
        module.get_submodule("0").requires_grad_(False)
        module.get_parameter("3.bias").requires_grad_(False)
        twin, direction = copy.deepcopy(module), random_direction(module)
        in_two_passes((twin, losses, batch), direction, torch.ones_like)
        score_and_backward(module, losses, batch, direction, torch.ones_like)
        assert {name for name, p in module.named_parameters() if p.grad is None} == {"0.weight", "0.bias", "3.bias"}
        assert_same_gradients(module, twin)

    def test_of_a_layer_that_reads_none_of_its_parameters_are_zero(self) -> None:
        class Doubled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.unread = nn.Parameter(torch.ones(2))

            def forward(self, x: Tensor) -> Tensor:
                return 2 * x

        module, batch = nn.Sequential(nn.Linear(3, 2), Doubled()), torch.randn(4, 3)
        direction = random_direction(module)
        expected = ExactScorer("loop").score(module, squares, [batch], direction)
        assert_same(score_and_backward(module, squares, batch, direction, torch.ones_like), expected)
        unread = module.get_parameter("1.unread").grad
        assert unread is None or not unread.any()


@pytest.mark.parametrize(
    ("name", "subset", "inside"),
    [
        ("mlp", r"^3\.", ("3.",)),
        ("tied llama", 1, ("model.layers.1.", "model.norm.")),
        ("lora", "lora", ("base_model.",)),
    ],
)
def test_a_part_is_scored_and_all_is_trained(name: str, subset: Any, inside: tuple[str, ...]) -> None:
    module, losses, batch = CASES[name]()
    twin, direction, weigh = copy.deepcopy(module), random_direction(module), WEIGHTS["in proportion"]
    part = {key: tensor for key, tensor in direction.items() if key.startswith(inside)}
    expected = in_two_passes((twin, losses, batch), part, weigh)
    for along in (direction, part):  # of a whole direction the part is taken
        module.zero_grad()
        assert_same(score_and_backward(module, losses, batch, along, weigh, subset), expected)
        assert_same_gradients(module, twin)


class TestLeavesTheModuleAsItWas:
    @pytest.fixture
    def module(self) -> nn.Module:
        module = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2)).train()
        module[0].eval().bias.requires_grad_(False)
        return module

    @staticmethod
    def look(module: nn.Module) -> list[Any]:
        hooks = [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in module.modules()]
        return [hooks, [part.training for part in module.modules()], [p.requires_grad for p in module.parameters()]]

    def test_with_dropout_off_meanwhile(self, module: nn.Module) -> None:
        batch, direction, before = torch.randn(4, 3), random_direction(module), self.look(module)
        twin = copy.deepcopy(module).eval()
        expected = in_two_passes((twin, squares, batch), direction, torch.ones_like)
        assert_same(score_and_backward(module, squares, batch, direction, torch.ones_like), expected)
        assert_same_gradients(module, twin)
        assert self.look(module) == before

    def test_where_a_part_is_scored(self, module: nn.Module) -> None:
        before = self.look(module)
        score_and_backward(module, squares, torch.randn(4, 3), random_direction(module), torch.ones_like, r"^2\.bias")
        assert self.look(module) == before

    @pytest.mark.parametrize("place", ["losses", "weigh", "direction"])
    def test_after_an_error(self, module: nn.Module, place: str) -> None:
        def fail(*_: Any) -> Any:
            module(torch.randn(4, 3))
            raise KeyError("broken")

        losses, weigh = (fail if place == "losses" else squares), (fail if place == "weigh" else torch.ones_like)
        broken = ValidationDirection([torch.ones(1, 3)], fail)
        direction: Any = broken if place == "direction" else random_direction(module)
        before = self.look(module)
        with pytest.raises(KeyError, match="broken"):
            score_and_backward(module, losses, torch.randn(4, 3), direction, weigh)
        assert self.look(module) == before
        assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize(
    ("weights", "shape"),
    [(torch.ones(4), r"\(4,\)"), (torch.ones(()), r"\(\)"), (torch.ones(5, 1), r"\(5, 1\)")]
    + [(torch.tensor([1.0, value, 1.0, 1.0, 1.0]), r"\(5,\)") for value in (float("nan"), float("inf"))],
    ids=["too few", "one for all", "a column", "NaN", "Inf"],
)
def test_refuses_weights_that_do_not_fit(weights: Tensor, shape: str) -> None:
    module, losses, batch = mlp()
    with pytest.raises(UsageError, match=rf"weigh = 'a result of shape {shape}': return one finite factor an episode"):
        score_and_backward(module, losses, batch, random_direction(module), lambda scores: weights)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_refuses_a_layer_whose_rows_are_not_the_episodes_by_name() -> None:
    module = Flattened()
    with pytest.raises(UsageError, match=r"cannot cover 'head': its output has shape \(20, 2\)"):
        score_and_backward(module, squares, torch.randn(4, 5, 3), random_direction(module), torch.ones_like)
    assert all(parameter.grad is None for parameter in module.parameters())
