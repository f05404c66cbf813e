"""Directions from the buffer, from returns and from Adam's state, and parts of the parameters, by plain autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_modules import (
    WithTable,
    assert_same,
    dots,
    plain_gradients,
    random_direction,
    squares,
)
from torch import Tensor, nn
from torch.nn import functional

from ippo.errors import UsageError
from ippo.influence import (
    AdamPreconditioned,
    Buffer,
    BufferDirection,
    Direction,
    ExactScorer,
    RandomProjectionScorer,
    ReturnDirection,
    Scorer,
    TracInScorer,
    ValidationDirection,
    score_and_backward,
)

BACKENDS: tuple[Any, ...] = ("auto", "jvp", "ghost", "loop", "fd")


def cubes(module: nn.Module, batch: Tensor) -> Tensor:
    return module(batch).pow(3).flatten(1).mean(1)


class Blocks(nn.Module):
    """An embedding tied to the head around two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.words(ids)
        for block in self.blocks:
            hidden = hidden + torch.tanh(block(hidden))
        return self.head(self.norm(hidden))


class Adapted(nn.Module):
    """A layer with a low-rank adapter, under the names that PEFT gives."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer, self.lora_A, self.lora_B = nn.Linear(5, 4), nn.Linear(5, 2, bias=False), nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.base_layer(x) + self.lora_B(self.lora_A(x)))


class Uncoverable(nn.Module):
    """Uses its layer's weight outside of the layer, where hooks do not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(functional.linear(self.layer(x), self.layer.weight)))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 2))


Case = tuple[nn.Module, Tensor]
CASES: dict[str, Callable[[], Case]] = {
    "mlp": lambda: (mlp(), torch.randn(6, 5)),
    "with a time axis": lambda: (mlp(), torch.randn(6, 3, 5)),
    "tied embeddings": lambda: (Blocks(), torch.randint(7, (6, 5))),
    "out of reach of hooks": lambda: (Uncoverable(), torch.randn(6, 5)),
    "a layer used twice": lambda: (nn.Sequential(*[nn.Linear(5, 5), nn.Tanh()] * 2), torch.randn(6, 5)),
}

REFUSED = ("ghost", "out of reach of hooks")
LEFT_OUT = [(backend, name) for backend in BACKENDS for name in CASES if (backend, name) != REFUSED]


def assert_same_direction(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)


class TestBufferDirection:
    @pytest.mark.parametrize("size", [1, 4, 6])
    def test_is_the_mean_gradient_of_what_is_scored(self, size: int) -> None:
        module, batch = CASES["tied embeddings"]()
        expected = {name: rows.mean(0) for name, rows in plain_gradients(module, batch).items()}
        assert_same_direction(BufferDirection().compute(module, Buffer(squares, batch.split(size))), expected)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_is_made_from_the_batches_and_losses_of_the_scorer(self, backend: Any) -> None:
        module, batch = CASES["mlp"]()
        gradients = plain_gradients(module, batch, cubes)
        expected = dots(gradients, {name: rows.mean(0) for name, rows in gradients.items()})
        scores = ExactScorer(backend).score(module, cubes, batch.split(4), BufferDirection())
        assert_same(scores, expected, 1e-3 if backend == "fd" else 1e-5)

    def test_scores_tokens_too(self) -> None:
        module, batch = CASES["with a time axis"]()
        gradients = plain_gradients(module, batch)

        def token_losses(module: nn.Module, batch: Tensor) -> Tensor:
            return module(batch).square().mean(2) / 3

        tokens = ExactScorer().token_scores(module, token_losses, batch.split(4), BufferDirection())
        assert tokens.shape == (6, 3)
        assert_same(tokens.sum(1), dots(gradients, {name: rows.mean(0) for name, rows in gradients.items()}))


class TestLeaveOneOut:
    @staticmethod
    def dense(gradients: Mapping[str, Tensor]) -> Tensor:
        """Each gradient with the mean of the others, one after another."""
        flat = torch.cat([rows.flatten(1) for rows in gradients.values()], 1)
        return torch.stack([row @ torch.cat([flat[:i], flat[i + 1 :]]).mean(0) for i, row in enumerate(flat)])

    @pytest.mark.parametrize(("backend", "name"), LEFT_OUT)
    def test_is_each_gradient_with_the_mean_of_the_others(self, backend: Any, name: str) -> None:
        module, batch = CASES[name]()
        expected = self.dense(plain_gradients(module, batch))
        for size in (6, 4, 1):
            scores = ExactScorer(backend).score(module, squares, batch.split(size), BufferDirection(leave_one_out=True))
            assert_same(scores, expected, 1e-3 if backend == "fd" else 1e-5)

    def test_is_not_the_mean_of_all(self) -> None:
        module, batch = CASES["mlp"]()
        scores = ExactScorer().score(module, squares, [batch], BufferDirection())
        assert (scores > self.dense(plain_gradients(module, batch))).all()  # each one votes for itself

    def test_holds_where_a_layer_takes_a_table_of_as_many_rows_as_episodes(self) -> None:
        module, batch = WithTable(), torch.randn(3, 3, 3)
        scores = ExactScorer().score(module, squares, [batch], BufferDirection(leave_one_out=True))
        assert_same(scores, self.dense(plain_gradients(module, batch)))

    def test_counts_the_chosen_parameters_alone(self) -> None:
        module, batch = CASES["tied embeddings"]()
        gradients = plain_gradients(module, batch)
        part = {name: rows for name, rows in gradients.items() if name.startswith(("blocks.1.", "norm."))}
        scores = ExactScorer(parameters=1).score(module, squares, [batch], BufferDirection(leave_one_out=True))
        assert_same(scores, self.dense(part))

    def test_of_two_episodes_is_the_dot_product_of_both(self) -> None:
        module, batch = mlp(), torch.randn(2, 5)
        gradients = plain_gradients(module, batch)
        expected = dots(gradients, {name: rows[1] for name, rows in gradients.items()})[:1].expand(2)
        assert_same(ExactScorer().score(module, squares, [batch], BufferDirection(leave_one_out=True)), expected)

    def test_of_one_episode_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"leave_one_out=True.*: it needs at least two episodes"):
            ExactScorer().score(mlp(), squares, [torch.randn(1, 5)], BufferDirection(leave_one_out=True))

    def test_under_adam_is_refused(self) -> None:
        with pytest.raises(UsageError, match="leaving one out takes the plain gradient"):
            AdamPreconditioned(BufferDirection(leave_one_out=True))


class TestReturnDirection:
    def test_is_the_mean_gradient_of_its_own_loss_on_the_buffer(self) -> None:
        module, batch = CASES["mlp"]()
        direction = ReturnDirection(loss=cubes)
        expected = {name: rows.mean(0) for name, rows in plain_gradients(module, batch, cubes).items()}
        assert direction.needs_buffer
        assert_same_direction(direction.compute(module, Buffer(squares, batch.split(4))), expected)
        scores = ExactScorer().score(module, squares, batch.split(4), direction)
        assert_same(scores, dots(plain_gradients(module, batch), expected))

    @pytest.mark.parametrize("sampled", [False, True], ids=["given", "sampled"])
    def test_or_on_batches_of_its_own(self, sampled: bool) -> None:
        (module, batch), gold = CASES["mlp"](), torch.randn(4, 5)
        batches: Any = (lambda: list(gold.split(3))) if sampled else gold.split(3)
        direction = ReturnDirection(on="validation", loss=cubes, batches=batches)
        assert not direction.needs_buffer
        expected = {name: rows.mean(0) for name, rows in plain_gradients(module, gold, cubes).items()}
        assert_same_direction(direction.compute(module), expected)
        scores = ExactScorer().score(module, squares, [batch], direction)
        assert_same(scores, dots(plain_gradients(module, batch), expected))

    def test_samples_anew_each_time(self) -> None:
        module = mlp()
        direction = ReturnDirection(on="validation", loss=cubes, batches=lambda: [torch.randn(4, 5)])
        assert not torch.equal(direction.compute(module)["0.weight"], direction.compute(module)["0.weight"])

    def test_an_unknown_place_is_refused(self) -> None:
        with pytest.raises(UsageError, match="on = 'test': use buffer or validation"):
            ReturnDirection(on="test")  # type: ignore[arg-type]


class TestAdamPreconditioned:
    GOLD = torch.linspace(-2, 2, 20).view(4, 5)

    @staticmethod
    def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int, beta: float) -> dict[str, Tensor]:
        """Take steps; the bias-corrected second moment by its formula, from the gradients as they pass by."""
        moments = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
        for _ in range(steps):
            optimizer.zero_grad()
            squares(module, torch.randn(3, 5)).mean().backward()
            for name, parameter in module.named_parameters():
                assert parameter.grad is not None
                moments[name] = beta * moments[name] + (1 - beta) * parameter.grad**2
            optimizer.step()
        return {name: moment / (1 - beta**steps) for name, moment in moments.items()}

    @pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
    @pytest.mark.parametrize("eps", [1e-8, 0.1])
    def test_divides_by_the_root_of_the_second_moment(self, kind: Any, eps: float) -> None:
        module = mlp()
        optimizer = kind(module.parameters(), lr=1e-2, betas=(0.9, 0.95))
        moments = self.train(module, optimizer, steps=3, beta=0.95)
        gold = ValidationDirection([self.GOLD], squares)
        plain = {name: rows.mean(0) for name, rows in plain_gradients(module, self.GOLD).items()}
        expected = {name: tensor / (moments[name].sqrt() + eps) for name, tensor in plain.items()}
        direction = AdamPreconditioned(gold, optimizer, eps)
        assert_same_direction(direction.compute(module), expected)
        batch = torch.randn(6, 5)
        scores = ExactScorer().score(module, squares, [batch], direction)
        assert_same(scores, dots(plain_gradients(module, batch), expected), 1e-4)

    def test_of_the_buffer(self) -> None:
        module, batch = mlp(), torch.randn(6, 5)
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2, betas=(0.9, 0.95))
        moments = self.train(module, optimizer, steps=3, beta=0.95)
        direction = AdamPreconditioned(BufferDirection(), optimizer)
        assert direction.needs_buffer
        gradients = plain_gradients(module, batch)
        expected = {name: rows.mean(0) / (moments[name].sqrt() + 1e-8) for name, rows in gradients.items()}
        assert_same(ExactScorer().score(module, squares, [batch], direction), dots(gradients, expected), 1e-4)

    def test_before_any_step_is_the_plain_direction(self) -> None:
        module, gold = mlp(), ValidationDirection([self.GOLD], squares)
        direction = AdamPreconditioned(gold, torch.optim.Adam(module.parameters()))
        assert_same_direction(direction.compute(module), gold.compute(module))

    def test_leaves_what_the_optimizer_does_not_train_as_it_is(self) -> None:
        module, gold = mlp(), ValidationDirection([self.GOLD], squares)
        optimizer = torch.optim.Adam(module.get_submodule("3").parameters(), lr=1e-2)
        self.train(module, optimizer, steps=1, beta=0.999)
        plain, found = gold.compute(module), AdamPreconditioned(gold, optimizer).compute(module)
        changed = {name for name in plain if not torch.allclose(plain[name], found[name])}
        assert changed == {"3.weight", "3.bias"}

    def test_of_a_part_of_the_parameters(self) -> None:
        module, batch, gold = mlp(), torch.randn(6, 5), ValidationDirection([self.GOLD], squares)
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        self.train(module, optimizer, steps=2, beta=0.999)
        direction = AdamPreconditioned(gold, optimizer)
        expected = dots(plain_gradients(module, batch), direction.compute(module), ["3.weight"])
        assert_same(ExactScorer(parameters=r"3\.weight").score(module, squares, [batch], direction), expected, 1e-4)

    @pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.RMSprop])
    def test_refuses_an_optimizer_without_second_moments_of_adam(self, kind: Any) -> None:
        module = mlp()
        direction = AdamPreconditioned(BufferDirection(), kind(module.parameters(), lr=0.1))
        with pytest.raises(UsageError, match=f"optimizer = '{kind.__name__}': it keeps no second moments: use Adam"):
            direction.compute(module, Buffer(squares, [torch.randn(3, 5)]))

    @pytest.mark.parametrize("eps", [0.0, -1.0])
    def test_refuses_to_divide_by_zero(self, eps: float) -> None:
        with pytest.raises(UsageError, match=f"eps = {eps}: use a number above 0"):
            AdamPreconditioned(eps=eps)


class TestBinding:
    """What a direction leaves open comes from whoever runs the training."""

    class Host:
        def __init__(self, module: nn.Module) -> None:
            self.optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
            self.gold, self.objective = torch.randn(3, 5), SimpleNamespace(returns=cubes, answer_returns=cubes)

        def validation_direction(self) -> ValidationDirection:
            return ValidationDirection([self.gold], squares)

        def validation_rollout(self) -> list[Tensor]:
            return [self.gold]

        def optimizers(self) -> torch.optim.Optimizer:
            return self.optimizer

    def test_of_returns_that_the_check_judges(self) -> None:
        """The host is asked for such a rollout; one that knows rewards alone is never asked for more."""
        module, _ = CASES["mlp"]()
        host, asked = self.Host(module), []

        def judged(judged_by: str) -> list[Tensor]:
            asked.append(judged_by)
            return [host.gold]

        host.validation_rollout = judged  # type: ignore[assignment, method-assign]
        ReturnDirection("validation", judged_by="check").bind(host).compute(module)
        assert asked == ["check"]

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"on": "validation", "judged_by": "jury"}, "judged_by = 'jury': use reward or check"),
            ({"on": "buffer", "judged_by": "check"}, "use on='validation'"),
            ({"on": "validation", "judged_by": "check", "loss": squares}, "your batches are judged already"),
        ],
    )
    def test_refuses_a_judge_where_there_is_nothing_to_judge(self, options: dict[str, Any], said: str) -> None:
        with pytest.raises(UsageError) as refusal:
            ReturnDirection(**options)
        assert said in str(refusal.value)

    @pytest.mark.parametrize("on", ["buffer", "validation"])
    def test_of_returns(self, on: Any) -> None:
        module, batch = CASES["mlp"]()
        host, unbound = self.Host(module), ReturnDirection(on)
        bound = unbound.bind(host)
        of = batch if on == "buffer" else host.gold
        expected = {name: rows.mean(0) for name, rows in plain_gradients(module, of, cubes).items()}
        assert_same_direction(bound.compute(module, Buffer(squares, [batch])), expected)
        assert unbound.loss is None  # and it can be bound again, elsewhere

    @pytest.mark.parametrize("direction", [None, BufferDirection(), ReturnDirection()])
    def test_of_adam_binds_what_it_holds(self, direction: Direction | None) -> None:
        module, batch = CASES["mlp"]()
        host = self.Host(module)
        TestAdamPreconditioned.train(module, host.optimizer, steps=1, beta=0.999)
        inner = direction.bind(host) if direction is not None else host.validation_direction()
        plain = inner.compute(module, Buffer(squares, [batch]))
        bound = AdamPreconditioned(direction, eps=0.5).bind(host)
        found = bound.compute(module, Buffer(squares, [batch]))
        roots = {name: host.optimizer.state[p]["exp_avg_sq"].div(0.001).sqrt() for name, p in module.named_parameters()}
        assert_same_direction(found, {name: tensor / (roots[name] + 0.5) for name, tensor in plain.items()})

    def test_what_is_given_stays(self) -> None:
        module = mlp()
        host, optimizer = self.Host(module), torch.optim.Adam(module.parameters())
        gold = ValidationDirection([torch.randn(2, 5)], squares)
        assert gold.bind(host) is gold
        explicit = ReturnDirection(loss=squares)
        assert explicit.bind(host) is explicit
        adam: Any = AdamPreconditioned(gold, optimizer).bind(host)
        assert adam.optimizer is optimizer
        assert adam.direction is gold

    def test_several_optimizers_are_refused(self) -> None:
        module = mlp()
        host: Any = self.Host(module)
        host.optimizers = lambda: [host.optimizer, host.optimizer]
        with pytest.raises(UsageError, match="name one of them in code"):
            AdamPreconditioned().bind(host)

    @pytest.mark.parametrize(
        ("direction", "message"),
        [
            (ValidationDirection(), r"direction = 'ValidationDirection\(\)': give it batches and a loss, or bind it"),
            (ReturnDirection(), r"direction = 'ReturnDirection\(\)': give it a loss, or bind it"),
            (ReturnDirection("validation"), r"direction = 'ReturnDirection\(\)': give it a loss, or bind it"),
            (ReturnDirection("validation", squares), r"ReturnDirection\(on='validation'\).*: give it batches"),
            (AdamPreconditioned(), r"direction = 'AdamPreconditioned\(\)': give it an optimizer, or bind it"),
        ],
    )
    def test_unbound_directions_say_what_they_lack(self, direction: Direction, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            ExactScorer().score(mlp(), squares, [torch.randn(3, 5)], direction)

    @pytest.mark.parametrize("direction", [BufferDirection(), ReturnDirection(loss=squares)])
    def test_directions_of_the_buffer_say_that_they_need_it(self, direction: Direction) -> None:
        with pytest.raises(UsageError, match=r"it is made from the buffer that is scored: pass it to a scorer"):
            direction.compute(mlp())


class TestBatchesAreReadTwice:
    DIRECTIONS: tuple[Direction, ...] = (
        BufferDirection(),
        BufferDirection(leave_one_out=True),
        ReturnDirection(loss=squares),
    )

    @pytest.mark.parametrize("scorer", [ExactScorer(), TracInScorer(), RandomProjectionScorer()])
    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_so_an_iterator_is_refused(self, direction: Direction, scorer: Scorer) -> None:
        with pytest.raises(UsageError, match=r"batches = 'generator': .*Direction reads them before .*: pass a list"):
            scorer.score(mlp(), squares, (batch for batch in [torch.randn(3, 5)]), direction)

    def test_but_not_where_the_direction_comes_from_elsewhere(self) -> None:
        module, batch = CASES["mlp"]()
        direction = random_direction(module)
        scores = ExactScorer().score(module, squares, iter(batch.split(2)), direction)
        assert_same(scores, dots(plain_gradients(module, batch), direction))


PARTS: dict[str, tuple[type[nn.Module], Any, tuple[str, ...]]] = {
    "last block": (Blocks, 1, ("blocks.1.weight", "blocks.1.bias", "norm.weight", "norm.bias")),
    "more blocks than there are": (
        Blocks,
        9,
        (*(f"blocks.{n}.{kind}" for n in (0, 1) for kind in ("weight", "bias")), "norm.weight", "norm.bias"),
    ),
    "lora": (Adapted, "lora", ("lora_A.weight", "lora_B.weight", "lora_B.bias")),
    "regular expression": (Adapted, r"^base.*bias$", ("base_layer.bias",)),
    "tied embedding": (Blocks, "words", ("words.weight",)),
}


class TestSubsets:
    """A part of the parameters counts: the partial dot product, whichever form the direction has."""

    @staticmethod
    def batch(module: nn.Module, n: int) -> Tensor:
        return torch.randint(7, (n, 5)) if isinstance(module, Blocks) else torch.randn(n, 5)

    @pytest.mark.parametrize("form", ["full mapping", "part of it", "computed"])
    @pytest.mark.parametrize(("kind", "subset", "names"), PARTS.values(), ids=PARTS)
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_score_the_partial_dot_product(
        self, backend: Any, kind: type[nn.Module], subset: Any, names: tuple[str, ...], form: str
    ) -> None:
        module = kind()
        batch, gold = self.batch(module, 5), self.batch(module, 4)
        whole = {name: rows.mean(0) for name, rows in plain_gradients(module, gold).items()}
        assert set(names) < set(whole)
        directions: dict[str, Any] = {
            "full mapping": whole,
            "part of it": {name: whole[name] for name in names},
            "computed": ValidationDirection([gold], squares),
        }
        scores = ExactScorer(backend, subset).score(module, squares, batch.split(3), directions[form])
        expected = dots(plain_gradients(module, batch), whole, names)
        assert_same(scores, expected, 1e-3 if backend == "fd" else 1e-5)
        assert all(parameter.requires_grad for parameter in module.parameters())

    @pytest.mark.parametrize(
        ("subset", "message"),
        [
            (0, "parameters = 0: use null for all, a number of last blocks, 'lora', or a regular expression"),
            (-1, "parameters = -1: use null for all"),
            (True, "parameters = True: use null for all"),
            (False, "parameters = False: use null for all"),
            (1.5, r"parameters = 1\.5: use null for all"),
            ("(", r"parameters = '\(': it is no regular expression: missing \)"),
            ("attention", "parameters = 'attention': it holds no trainable parameter of Blocks; use null for all"),
            ("lora", "parameters = 'lora': it holds no trainable parameter of Blocks"),
            ("^head", r"parameters = '\^head': it holds no trainable parameter"),  # its weight is called words.weight
        ],
    )
    def test_refusals(self, subset: Any, message: str) -> None:
        module = Blocks()
        with pytest.raises(UsageError, match=message):
            ExactScorer(parameters=subset).score(module, squares, [self.batch(module, 2)], random_direction(module))
        assert all(parameter.requires_grad for parameter in module.parameters())

    def test_last_blocks_of_a_module_without_blocks(self) -> None:
        module = mlp()
        with pytest.raises(UsageError, match="parameters = 1: the module has no list of blocks: use a regular expr"):
            ExactScorer(parameters=1).score(module, squares, [torch.randn(2, 5)], random_direction(module))

    def test_a_frozen_parameter_is_in_no_part(self) -> None:
        module = Adapted()
        module.lora_A.requires_grad_(False)
        direction = {name: tensor for name, tensor in random_direction(module).items() if "lora_B" in name}
        batch = torch.randn(4, 5)
        scores = ExactScorer(parameters="lora").score(module, squares, [batch], direction)
        assert_same(scores, dots(plain_gradients(module, batch), direction, direction))
        assert not module.lora_A.weight.requires_grad

    def test_flags_come_back_after_an_error(self) -> None:
        def fail(*_: Any) -> Tensor:
            raise KeyError("broken")

        module = Adapted()
        module.lora_A.requires_grad_(False)
        before = [parameter.requires_grad for parameter in module.parameters()]
        with pytest.raises(KeyError):
            ExactScorer(parameters="lora_B").score(module, fail, [torch.randn(2, 5)], random_direction(module))
        assert [parameter.requires_grad for parameter in module.parameters()] == before


def score_by(kind: str, module: nn.Module, batch: Tensor, direction: Any) -> Tensor:
    """With every scorer, and in the fused step."""
    if kind == "fused":
        return score_and_backward(module, squares, batch, direction, torch.ones_like)
    scorers: dict[str, Scorer] = {"tracin": TracInScorer(), "projection": RandomProjectionScorer()}
    scorer = scorers[kind] if kind in scorers else ExactScorer(kind)  # type: ignore[arg-type]
    return scorer.score(module, squares, [batch], direction)


@pytest.mark.parametrize("kind", [*BACKENDS, "tracin", "projection", "fused"])
class TestEveryScorerRefuses:
    def test_a_direction_on_another_device(self, kind: str) -> None:
        module = mlp()
        elsewhere = {name: tensor.to("meta") for name, tensor in random_direction(module).items()}
        with pytest.raises(UsageError, match=r"direction\['0\.weight'\] = 'on meta': move it to cpu"):
            score_by(kind, module, torch.randn(3, 5), elsewhere)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_losses_that_are_not_finite(self, kind: str, value: float) -> None:
        module, batch = mlp(), torch.randn(3, 5)
        batch[1] = value
        with pytest.raises(UsageError, match=r"losses = 'NaN or Inf in 1 of 3 episodes, the first in row \[1\]'"):
            score_by(kind, module, batch, random_direction(module))
        assert all(p.grad is None and p.requires_grad for p in module.parameters())
