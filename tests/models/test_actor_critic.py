from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from parts import state
from transformers import LlamaForCausalLM

from ippo import Episodes
from ippo.models import SeparateModels, ValueModel, response_logprobs
from ippo.rollout.sequences import Sequences


@pytest.fixture
def models(policy: LlamaForCausalLM) -> SeparateModels:
    return SeparateModels(policy)


@pytest.fixture
def critic(models: SeparateModels) -> ValueModel:
    torch.nn.init.normal_(models.value.head.weight)
    return models.value.eval()


class TestValueModel:
    def test_first_values_are_zero(self, models: SeparateModels, rollout: Episodes) -> None:
        values = models.values(rollout)
        assert values.shape == rollout.response_ids.shape
        assert values.dtype == torch.float32
        assert (values == 0).all()

    @pytest.mark.parametrize("token", [0, 2])
    def test_a_value_knows_the_tokens_before_its_own_and_no_more(
        self, critic: ValueModel, gold: Sequences, token: int
    ) -> None:
        changed = gold.response_ids.clone()
        changed[:, token] = (changed[:, token] + 1) % 300
        with torch.no_grad():
            before, after = critic(gold), critic(dataclasses.replace(gold, response_ids=changed))
        moved = (after - before).abs() > 1e-4
        assert not moved[:, : token + 1].any()
        assert moved[:, token + 1].all()

    def test_the_first_value_knows_the_whole_prompt(self, critic: ValueModel, gold: Sequences) -> None:
        changed = gold.prompt_ids.clone()
        changed[:, -1] = (changed[:, -1] + 1) % 300
        with torch.no_grad():
            before, after = critic(gold), critic(dataclasses.replace(gold, prompt_ids=changed))
        assert ((after - before)[:, 0].abs() > 1e-4).all()

    def test_neighbours_and_padding_do_not_matter(self, critic: ValueModel, rollout: Episodes) -> None:
        with torch.no_grad():
            whole = critic(rollout)
            for row in range(len(rollout)):
                (one,) = rollout.rows(torch.tensor([row])).chunks(1)
                expected = whole[row, : one.response_ids.shape[1]]
                torch.testing.assert_close(critic(one)[0], expected, rtol=1e-4, atol=1e-4)

    def test_its_trunk_is_its_own(self, models: SeparateModels, rollout: Episodes) -> None:
        before = state(models.policy)
        torch.nn.init.normal_(models.value.head.weight)
        models.values(rollout).sum().backward()
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in models.value.trunk.parameters())
        assert all(parameter.grad is None for parameter in models.policy.parameters())
        for parameter in models.value.parameters():
            parameter.data.add_(1)
        assert all(torch.equal(after, before[name]) for name, after in state(models.policy).items())


class TestReference:
    def test_starts_as_the_policy_and_stays(self, models: SeparateModels, rollout: Episodes) -> None:
        with torch.no_grad():
            start = response_logprobs(models.policy, rollout, 0.7)
            models.policy.model.embed_tokens.weight.add_(torch.randn(models.policy.config.hidden_size))
            reference, now = models.reference_logprobs(rollout, 0.7), response_logprobs(models.policy, rollout, 0.7)
        torch.testing.assert_close(reference, start)
        assert (now - start).abs().max() > 0.01

    def test_is_frozen(self, models: SeparateModels, rollout: Episodes) -> None:
        assert not any(parameter.requires_grad for parameter in models.reference.parameters())
        assert not models.reference_logprobs(rollout, 1.0).requires_grad

    def test_never_leaves_evaluation_mode(self, models: SeparateModels) -> None:
        assert models.train() is models
        assert models.policy.training
        assert models.value.training
        assert not any(part.training for part in models.reference.modules())
        assert not models.eval().policy.training

    def test_is_not_saved_but_kept_on_loading(self, models: SeparateModels, shared_policy: LlamaForCausalLM) -> None:
        saved = models.state_dict()
        assert {key.split(".")[0] for key in saved} == {"policy", "value"}

        other = SeparateModels(copy.deepcopy(shared_policy))
        for parameter in other.parameters():
            parameter.data.add_(1)
        own = state(other.reference)
        keys = other.load_state_dict({key: value.clone() for key, value in saved.items()}, strict=True)
        assert not keys.missing_keys
        assert not keys.unexpected_keys
        assert all(torch.equal(value, saved[key]) for key, value in other.state_dict().items())
        assert all(torch.equal(value, own[name]) for name, value in state(other.reference).items())

    def test_is_left_out_below_a_parent_too(self, models: SeparateModels) -> None:
        parent = torch.nn.ModuleDict({"model": models})
        saved = parent.state_dict()
        assert {key.split(".")[1] for key in saved} == {"policy", "value"}
        parent.load_state_dict(saved, strict=True)


def test_parameter_groups_hold_each_trainable_parameter_once(models: SeparateModels) -> None:
    models.policy.model.norm.weight.requires_grad_(False)
    groups = models.parameter_groups()
    assert groups.keys() == {"policy", "value"}
    grouped = [id(parameter) for parameters in groups.values() for parameter in parameters]
    assert len(set(grouped)) == len(grouped)
    assert set(grouped) == {id(parameter) for parameter in models.parameters() if parameter.requires_grad}
    assert {id(p) for p in groups["policy"]} <= {id(p) for p in models.policy.parameters()}
