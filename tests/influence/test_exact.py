from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from parts import ppo_loss_by_hand
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from ippo import Episodes, PPOModule
from ippo.errors import UsageError
from ippo.influence import ExactScorer, ValidationDirection
from ippo.rollout.sequences import Sequences
from ippo.sft import demonstration_loss

BACKENDS = ("auto", "jvp", "ghost", "loop")


@pytest.fixture(scope="module")
def direction(shifted: PPOModule, gold: Sequences) -> dict[str, Tensor]:
    return ValidationDirection([gold], demonstration_loss).compute(shifted.model.policy)


@pytest.fixture(scope="module")
def expected(shifted: PPOModule, rollout: Episodes, direction: dict[str, Tensor]) -> Tensor:
    """One plain backward an episode, on its own, all in float64."""
    policy = copy.deepcopy(shifted.model.policy).double()
    parameters = dict(policy.named_parameters())
    scores = []
    for row in range(len(rollout)):
        gradients = torch.autograd.grad(ppo_loss_by_hand(policy, rollout, row), list(parameters.values()))
        dots = [
            (gradient.double() * direction[name].double()).sum()
            for name, gradient in zip(parameters, gradients, strict=True)
        ]
        scores.append(torch.stack(dots).sum())
    return torch.stack(scores).float()


def score(module: PPOModule, episodes: Episodes, direction: Any, backend: Any = "jvp", size: int = 64) -> Tensor:
    scorer = ExactScorer(backend)
    return scorer.score(module.model.policy, module.policy_losses, episodes.chunks(size), direction)


def assert_same(scores: Tensor, expected: Tensor) -> None:
    assert scores.shape == expected.shape
    assert (scores - expected).abs().max() <= 1e-5 * expected.abs().max()


class TestOnRealEpisodes:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_scores_are_the_dot_products_of_gradients(
        self, shifted: PPOModule, rollout: Episodes, direction: dict[str, Tensor], expected: Tensor, backend: str
    ) -> None:
        scores = score(shifted, rollout, direction, backend)
        assert scores.dtype == torch.float32
        assert not scores.requires_grad
        assert (expected > 0).any()
        assert (expected < 0).any()
        assert_same(scores, expected)

    @pytest.mark.parametrize("size", [1, 3, 16])
    @pytest.mark.parametrize("backend", ["jvp", "ghost", "loop"])
    def test_micro_batches_and_their_padding_do_not_matter(
        self, shifted: PPOModule, rollout: Episodes, direction: Any, expected: Tensor, backend: str, size: int
    ) -> None:
        assert_same(score(shifted, rollout, direction, backend, size), expected)

    def test_neighbours_do_not_matter(
        self, shifted: PPOModule, rollout: Episodes, direction: dict[str, Tensor], expected: Tensor
    ) -> None:
        order = torch.randperm(len(rollout))
        assert_same(score(shifted, rollout.rows(order), direction), expected[order])
        repeated = torch.tensor([3, 3, 0, 3])
        assert_same(score(shifted, rollout.rows(repeated), direction), expected[repeated])

    def test_no_advantage_no_score(self, shifted: PPOModule, rollout: Episodes, direction: dict[str, Tensor]) -> None:
        advantages = rollout.advantages.clone()
        advantages[::2] = 0
        scores = score(shifted, Episodes(**{**vars(rollout), "advantages": advantages}), direction)
        assert (scores[::2] == 0).all()
        assert (scores[1::2] != 0).all()

    def test_embeddings_are_tied_and_scored_once(self, shifted: PPOModule, direction: dict[str, Tensor]) -> None:
        policy = shifted.model.policy
        assert policy.lm_head.weight is policy.model.embed_tokens.weight
        assert "model.embed_tokens.weight" in direction
        assert "lm_head.weight" not in direction

    def test_a_step_on_an_episode_moves_the_gold_loss_by_its_score(
        self, shifted: PPOModule, rollout: Episodes, gold: Sequences, direction: dict[str, Tensor]
    ) -> None:
        scores = score(shifted, rollout, direction)
        rate = 1e-5
        for row in (int(scores.argmax()), int(scores.argmin())):
            policy: LlamaForCausalLM = copy.deepcopy(shifted.model.policy).double()
            parameters = list(policy.parameters())
            gradients = torch.autograd.grad(ppo_loss_by_hand(policy, rollout, row), parameters)
            with torch.no_grad():
                before = demonstration_loss(policy, gold).mean()
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter -= rate * gradient
                fallen = (before - demonstration_loss(policy, gold).mean()) / rate
            assert float(fallen) == pytest.approx(float(scores[row]), rel=0.01)

    @pytest.mark.parametrize("backend", ["jvp", "ghost", "loop"])
    def test_leaves_the_module_as_it_was(
        self, shifted: PPOModule, rollout: Episodes, direction: dict[str, Tensor], backend: str
    ) -> None:
        parameters = list(shifted.model.policy.parameters())
        parameters[0].grad = torch.ones_like(parameters[0])
        before = [parameter.detach().clone() for parameter in parameters]
        score(shifted, rollout, direction, backend)
        assert (parameters[0].grad == 1).all()
        assert all(parameter.grad is None for parameter in parameters[1:])
        assert all(torch.equal(now, was) for now, was in zip(parameters, before, strict=True))
        parameters[0].grad = None

    def test_takes_anything_that_computes_a_direction(
        self, shifted: PPOModule, rollout: Episodes, gold: Sequences, expected: Tensor
    ) -> None:
        assert_same(score(shifted, rollout, ValidationDirection(gold.chunks(3), demonstration_loss)), expected)


class TestOnAnyModule:
    """A module with dropout and batches that are plain tensors: nothing here knows of episodes."""

    @pytest.fixture
    def module(self) -> nn.Sequential:
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1))

    @staticmethod
    def losses(module: nn.Module, batch: Tensor) -> Tensor:
        return module(batch).square().flatten()

    @pytest.fixture
    def along(self, module: nn.Sequential) -> dict[str, Tensor]:
        return {name: torch.randn_like(parameter) for name, parameter in module.named_parameters()}

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_dropout_is_off_and_each_part_gets_its_mode_back(
        self, module: nn.Sequential, along: dict[str, Tensor], backend: Any
    ) -> None:
        batches = torch.randn(6, 3).split(2)
        expected = ExactScorer("loop").score(module.eval(), self.losses, batches, along)
        module.train()[0].eval()
        torch.testing.assert_close(ExactScorer(backend).score(module, self.losses, batches, along), expected)
        assert [part.training for part in module] == [False, True, True, True]
        assert module.training

    def test_modes_come_back_after_an_error(self, module: nn.Sequential, along: dict[str, Tensor]) -> None:
        with pytest.raises(UsageError):
            ExactScorer().score(module.train(), lambda module, batch: module(batch), [torch.ones(2, 3)], along)
        assert all(part.training for part in module)

    @pytest.mark.parametrize("backend", ["jvp", "ghost", "loop"])
    def test_frozen_parameters_take_no_part(self, module: nn.Sequential, backend: Any) -> None:
        module.eval()[0].requires_grad_(False)
        along = {name: torch.randn_like(p) for name, p in module.named_parameters() if p.requires_grad}
        batch = torch.randn(4, 3)
        hidden = torch.tanh(module[0](batch))
        outputs = module(batch).flatten()
        expected = 2 * outputs * (hidden @ along["3.weight"].T + along["3.bias"]).flatten()
        torch.testing.assert_close(ExactScorer(backend).score(module, self.losses, [batch], along), expected)

    @pytest.mark.parametrize("backend", ["jvp", "ghost", "loop"])
    def test_a_parameter_that_a_loss_does_not_read_adds_nothing(self, module: nn.Sequential, backend: Any) -> None:
        both = nn.ModuleDict({"read": module, "other": nn.Linear(2, 2)}).eval()
        along = {name: torch.ones_like(parameter) for name, parameter in both.named_parameters()}
        batch = torch.randn(4, 3)
        scores = ExactScorer(backend).score(both, lambda both, batch: self.losses(both["read"], batch), [batch], along)
        inner = {name.removeprefix("read."): tensor for name, tensor in along.items() if name.startswith("read.")}
        torch.testing.assert_close(scores, ExactScorer("loop").score(module, self.losses, [batch], inner))

    @pytest.mark.parametrize("backend", ["auto", "jvp", "loop"])
    def test_a_row_of_an_embedding_that_is_never_trained_is_never_scored(self, backend: Any) -> None:
        """The row of the pad token gets no gradient as an input, though it may get one as an output."""
        module = nn.Embedding(5, 3, padding_idx=0)
        torch.nn.init.normal_(module.weight)

        def losses(module: nn.Module, ids: Tensor) -> Tensor:
            return (module(ids) @ module.weight.T).square().mean((1, 2))

        ids, along = torch.tensor([[1, 0, 2], [3, 4, 1]]), torch.randn(5, 3)
        gradients = [torch.autograd.grad(losses(module, row[None]).sum(), module.weight)[0] for row in ids]
        expected = torch.stack([(gradient * along).sum() for gradient in gradients])
        scores = ExactScorer(backend).score(module, losses, [ids], {"weight": along})
        torch.testing.assert_close(scores, expected)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_refuses_a_loss_that_is_not_finite(
        self, module: nn.Sequential, along: dict[str, Tensor], backend: Any
    ) -> None:
        batch = torch.randn(3, 3)
        batch[1] = float("nan")
        with pytest.raises(UsageError, match=r"losses = 'NaN or Inf in 1 of 3 episodes, the first in row \[1\]'"):
            ExactScorer(backend).score(module, self.losses, [batch], along)

    @pytest.mark.parametrize("backend", ["jvp", "ghost", "loop"])
    def test_works_inside_no_grad(self, module: nn.Sequential, along: dict[str, Tensor], backend: Any) -> None:
        batch = torch.randn(3, 3)
        expected = ExactScorer(backend).score(module, self.losses, [batch], along)
        with torch.no_grad():
            torch.testing.assert_close(ExactScorer(backend).score(module, self.losses, [batch], along), expected)

    def test_no_batches_no_scores(self, module: nn.Sequential, along: dict[str, Tensor]) -> None:
        assert ExactScorer().score(module, self.losses, [], along).tolist() == []

    @pytest.mark.parametrize("backend", ["jvp", "ghost", "loop"])
    @pytest.mark.parametrize("shape", ["scalar", "column"])
    def test_refuses_losses_that_are_not_one_a_row(
        self, module: nn.Sequential, along: dict[str, Tensor], backend: Any, shape: str
    ) -> None:
        def losses(module: nn.Module, batch: Tensor) -> Tensor:
            return module(batch).mean() if shape == "scalar" else module(batch)

        found = r"\(\)" if shape == "scalar" else r"\(4, 1\)"
        with pytest.raises(UsageError, match=rf"losses = 'a result of shape {found}': return one loss for each"):
            ExactScorer(backend).score(module, losses, [torch.randn(4, 3)], along)


def test_refuses_an_unknown_backend() -> None:
    with pytest.raises(UsageError, match="backend = 'magic': use one of auto, jvp, ghost, loop, fd"):
        ExactScorer("magic")  # type: ignore[arg-type]


def test_a_frozen_quantised_layer_does_not_matter() -> None:
    frozen, head = nn.Sequential(nn.Linear(3, 3)), nn.Linear(3, 3)
    module, batch = nn.Sequential(torch.ao.quantization.quantize_dynamic(frozen, {nn.Linear}), head), torch.randn(2, 3)
    along = {name: torch.randn_like(parameter) for name, parameter in module.named_parameters()}
    assert set(along) == {"1.weight", "1.bias"}
    expected = module[0](batch) @ along["1.weight"].sum(0) + along["1.bias"].sum()  # rounded over the batch's range
    scores = ExactScorer().score(module, lambda module, batch: module(batch).sum(1), [batch], along)
    torch.testing.assert_close(scores, expected)
