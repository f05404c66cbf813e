from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from ippo.errors import UsageError
from ippo.influence import ValidationDirection
from ippo.influence.direction import resolve
from ippo.rollout.sequences import Sequences
from ippo.sft import demonstration_loss


def squares(module: nn.Module, batch: Tensor) -> Tensor:
    return module(batch).square().sum(1)


@pytest.fixture
def module() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))


class TestValidationDirection:
    @pytest.mark.parametrize("size", [1, 3, 8])
    def test_is_the_gradient_of_the_mean_over_all_rows(
        self, policy: LlamaForCausalLM, gold: Sequences, size: int
    ) -> None:
        validation = ValidationDirection(gold.chunks(size), demonstration_loss)
        assert validation.mean_loss is None
        direction = validation.compute(policy)
        losses = []
        fields = (gold.prompt_ids, gold.prompt_mask, gold.response_ids, gold.response_mask)
        for prompt, prompt_mask, response, mask in zip(*fields, strict=True):  # each row by itself
            ids = torch.cat([prompt[prompt_mask], response[mask]])[None]
            labels = ids.clone()
            labels[0, : int(prompt_mask.sum())] = -100
            losses.append(policy(ids, labels=labels).loss)
        mean = torch.stack(losses).mean()
        assert validation.mean_loss == pytest.approx(float(mean), rel=1e-4)
        mean.backward()
        for name, parameter in policy.named_parameters():
            torch.testing.assert_close(direction[name], parameter.grad, rtol=1e-4, atol=1e-6)

    def test_reads_its_batches_and_the_parameters_anew_each_time(self, module: nn.Sequential) -> None:
        direction = ValidationDirection([torch.randn(5, 3)], squares)
        module.eval()
        first, second = direction.compute(module), direction.compute(module)
        module.get_parameter("2.weight").data.mul_(2)
        third = direction.compute(module)
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert not torch.equal(first["0.weight"], third["0.weight"])

    def test_leaves_gradients_and_modes_alone(self, module: nn.Sequential) -> None:
        module.train().get_submodule("0").eval()
        ValidationDirection([torch.randn(5, 3)], squares).compute(module)
        assert all(parameter.grad is None for parameter in module.parameters())
        assert [part.training for part in module] == [False, True, True]

    def test_dropout_is_off(self, module: nn.Sequential) -> None:
        direction = ValidationDirection([torch.randn(5, 3)], squares)
        expected = direction.compute(module.eval())
        found = direction.compute(module.train())
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor)

    def test_works_inside_no_grad(self, module: nn.Sequential) -> None:
        with torch.no_grad():
            direction = ValidationDirection([torch.randn(5, 3)], squares).compute(module)
        assert direction["0.weight"].any()

    def test_a_parameter_that_the_loss_does_not_read_gets_zeros(self, module: nn.Sequential) -> None:
        both = nn.ModuleDict({"read": module, "other": nn.Linear(2, 2)})
        direction = ValidationDirection([torch.ones(1, 3)], lambda both, batch: squares(both["read"], batch))
        assert not direction.compute(both)["other.weight"].any()

    def test_refuses_no_examples(self, module: nn.Sequential) -> None:
        with pytest.raises(UsageError, match="its batches are empty"):
            ValidationDirection([], squares).compute(module)


class TestResolve:
    @staticmethod
    def fitting(module: nn.Module) -> dict[str, Tensor]:
        return {name: torch.randn_like(parameter) for name, parameter in module.named_parameters()}

    def test_takes_tensors_or_what_computes_them(self, module: nn.Sequential) -> None:
        tensors = self.fitting(module)
        resolved = resolve(tensors, module)
        assert list(resolved) == [name for name, _ in module.named_parameters()]
        assert all(torch.equal(resolved[name], tensors[name]) for name in tensors)
        assert resolve(ValidationDirection([torch.ones(1, 3)], squares), module).keys() == tensors.keys()

    def test_comes_in_the_order_and_dtype_of_the_parameters(self, module: nn.Sequential) -> None:
        tensors = {name: tensor.double() for name, tensor in reversed(self.fitting(module).items())}
        resolved = resolve(tensors, module)
        assert list(resolved) == [name for name, _ in module.named_parameters()]
        assert {tensor.dtype for tensor in resolved.values()} == {torch.float32}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"2.weight": None}, r"direction = \"without \['2\.weight'\]\": it misses 1 trainable parameters"),
            ({"3.weight": torch.ones(1)}, r"direction = \"with \['3\.weight'\]\": 1 of its keys"),
            ({"2.weight": torch.ones(4, 2)}, r"direction\['2\.weight'\] = 'shape \(4, 2\)': .* has \(2, 4\)"),
            ({"2.bias": torch.ones(1)}, r"direction\['2\.bias'\] = 'shape \(1,\)': the parameter has \(2,\)"),
            ({"0.bias": torch.tensor([0.0, 0.0, 0.0, torch.nan])}, r"direction\['0\.bias'\] = 'NaN or Inf'"),
            ({"0.bias": torch.full((4,), torch.inf)}, r"direction\['0\.bias'\] = 'NaN or Inf'"),
        ],
        ids=["missing", "extra", "transposed", "would broadcast", "NaN", "Inf"],
    )
    def test_refuses_what_does_not_fit_and_names_the_tensor(
        self, module: nn.Sequential, change: dict[str, Any], message: str
    ) -> None:
        tensors = {**self.fitting(module), **change}
        with pytest.raises(UsageError, match=message):
            resolve({name: tensor for name, tensor in tensors.items() if tensor is not None}, module)

    def test_of_a_direction_for_the_whole_module_the_trainable_part_is_taken(self, module: nn.Sequential) -> None:
        tensors = self.fitting(module)
        module[0].bias.requires_grad_(False)
        assert resolve(tensors, module).keys() == tensors.keys() - {"0.bias"}

    def test_refuses_a_module_without_trainable_parameters(self, module: nn.Sequential) -> None:
        with pytest.raises(UsageError, match="module = 'Sequential': it has no trainable parameter"):
            resolve({}, module.requires_grad_(False))

    def test_refuses_a_nan_gold_loss(self, module: nn.Sequential) -> None:
        direction = ValidationDirection([torch.full((1, 3), torch.nan)], squares)
        with pytest.raises(UsageError, match="NaN or Inf"):
            resolve(direction, module)
