"""Adapters merged for a rollout, and weights cast once in it: the same numbers, and nothing left behind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from parts import state
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from ippo.models import LoraModels, LoraOptions
from ippo.rollout.adapters import Merged, cast_once
from ippo.rollout.engines.hf import HFGenerate
from ippo.rollout.sampling import Sampling

PROMPTS = ["Ava has 8 pens", "7", "Ben has 12 books, buys 3, loses 4. How many now?\n"]
IDS = torch.arange(2, 14).view(2, 6)


def adapted(policy: PreTrainedModel, **lora: Any) -> LoraModels:
    """Models whose adapters do something."""
    models = LoraModels(copy.deepcopy(policy), LoraOptions(rank=2, alpha=4.0, **lora)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in models.policy.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    return models


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=64, n_embd=32, n_layer=2, n_head=2)).eval()


class CountCasts(TorchDispatchMode):
    """Counts what becomes bfloat16 of the shape of a weight."""

    def __init__(self, shapes: set[torch.Size]) -> None:
        super().__init__()
        self.shapes, self.count = shapes, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and found.dtype == torch.bfloat16:
            self.count += found.shape in self.shapes
        return found


class TestMerged:
    @pytest.mark.parametrize("targets", ["all-linear", "q_proj,v_proj", "q_proj,embed_tokens"])
    def test_the_policy_reads_the_same_without_an_adapter_in_sight(
        self, policy: LlamaForCausalLM, targets: str
    ) -> None:
        if "embed" in targets:
            policy.lm_head.weight = nn.Parameter(policy.lm_head.weight.detach().clone())
            policy.config.tie_word_embeddings = False
        models = adapted(policy, targets=targets)
        with torch.no_grad():
            apart = models.policy(IDS).logits
            with Merged()(models.policy):
                assert not any("lora" in name for name, _ in models.policy.named_modules())
                together = models.policy(IDS).logits
            again = models.policy(IDS).logits
        torch.testing.assert_close(together, apart, rtol=0, atol=1e-4)
        assert not torch.allclose(apart, models.reference(IDS).logits, atol=1e-2)
        assert torch.equal(again, apart)

    def test_weights_that_lie_the_other_way_round(self) -> None:
        models = adapted(gpt2())
        with torch.no_grad():
            apart = models.policy(IDS).logits
            with Merged()(models.policy):
                torch.testing.assert_close(models.policy(IDS).logits, apart, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("keep", [False, True])
    def test_a_thousand_rollouts_leave_every_bit(self, policy: LlamaForCausalLM, keep: bool) -> None:
        models = adapted(policy.to(torch.bfloat16))
        before, modules, merged = state(models), [*models.policy.modules()], Merged(keep)
        with torch.no_grad(), merged(models.policy):
            first = models.policy(IDS).logits
        for _ in range(998):
            with merged(models.policy):
                pass
        with torch.no_grad(), merged(models.policy):
            assert torch.equal(models.policy(IDS).logits, first)
        assert all(torch.equal(value, before[name]) for name, value in state(models).items())
        assert [*models.policy.modules()] == modules
        trained = [parameter for parameter in models.policy.parameters() if parameter.requires_grad]
        assert len(trained) == 2 * 7 * 2  # layers, targets, factors

    def test_autocast_does_not_round_the_sum(self, policy: LlamaForCausalLM) -> None:
        models = adapted(policy)
        with Merged()(models.policy):
            plain = models.policy.model.layers[0].self_attn.q_proj.weight
        with torch.autocast("cpu", torch.bfloat16), Merged()(models.policy):
            assert torch.equal(models.policy.model.layers[0].self_attn.q_proj.weight, plain)

    def test_critic_and_reference_do_not_notice(self, policy: LlamaForCausalLM) -> None:
        models = adapted(policy)
        with torch.no_grad():
            before = models.reference(IDS).logits
            with Merged()(models.policy):
                assert torch.equal(models.reference(IDS).logits, before)

    def test_kept_copies_stay_where_they_are_and_follow_the_adapter(self, policy: LlamaForCausalLM) -> None:
        models, merged = adapted(policy), Merged(keep=True)

        def weights() -> list[Tensor]:
            with merged(models.policy):
                return [layer.self_attn.q_proj.weight for layer in models.policy.model.layers]

        first = [(weight.data_ptr(), weight.clone()) for weight in weights()]
        with torch.no_grad():
            models.policy.model.layers[0].self_attn.q_proj.lora_B["default"].weight.add_(1.0)
        second = weights()
        assert [weight.data_ptr() for weight in second] == [place for place, _ in first]
        assert [torch.equal(weight, old) for weight, (_, old) in zip(second, first, strict=True)] == [False, True]

    def test_the_policy_is_itself_again_after_an_error(self, policy: LlamaForCausalLM) -> None:
        models = adapted(policy)
        modules = [*models.policy.modules()]
        with pytest.raises(RuntimeError, match="broken"), Merged()(models.policy):
            raise RuntimeError("broken")
        assert [*models.policy.modules()] == modules

    def test_the_engine_samples_the_same_either_way(
        self, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        models, greedy = adapted(policy), Sampling(temperature=0.0, max_new_tokens=12)
        found = [
            HFGenerate(tokenizer, merge_adapters=merge).generate(models.policy, PROMPTS, greedy).response_ids
            for merge in (True, False)
        ]
        assert torch.equal(*found)
        assert not torch.equal(found[0], HFGenerate(tokenizer).generate(models.reference, PROMPTS, greedy).response_ids)


class TestCastOnce:
    def casts(self, policy: Any, tokenizer: PreTrainedTokenizerFast, cache: bool) -> tuple[int, Tensor]:
        shapes = {parameter.shape for parameter in policy.parameters() if parameter.dim() == 2}
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), CountCasts(shapes) as counted:
            if cache:
                found = HFGenerate(tokenizer).generate(policy, PROMPTS, Sampling(max_new_tokens=6, temperature=0.0))
                return counted.count, found.response_ids
            with torch.no_grad():
                for _ in range(6):
                    policy(IDS)
        return counted.count, IDS

    @pytest.mark.parametrize("layout", ["separate", "lora"])
    def test_each_weight_is_cast_once_a_rollout(
        self, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, layout: str
    ) -> None:
        chosen = adapted(policy).policy if layout == "lora" else policy
        HFGenerate(tokenizer).generate(chosen, PROMPTS, Sampling(max_new_tokens=2))  # a model's first looks at it
        weights = 2 * 7 + 1  # two layers, and the head
        assert self.casts(policy, tokenizer, cache=False)[0] == 6 * weights
        assert self.casts(chosen, tokenizer, cache=True)[0] == weights

    def test_a_new_weight_is_seen_by_the_next_rollout(
        self, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        _, before = self.casts(policy, tokenizer, cache=True)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            HFGenerate(tokenizer).generate(policy, PROMPTS, Sampling(max_new_tokens=2))
            with torch.no_grad():
                policy.model.layers[0].mlp.down_proj.weight.mul_(-3)
            held = HFGenerate(tokenizer).generate(policy, PROMPTS, Sampling(max_new_tokens=6, temperature=0.0))
        _, fresh = self.casts(copy.deepcopy(policy), tokenizer, cache=True)
        assert torch.equal(held.response_ids, fresh)
        assert not torch.equal(held.response_ids, before)

    def test_what_was_frozen_stays_so_and_a_graph_gets_no_cache(self, policy: LlamaForCausalLM) -> None:
        policy.requires_grad_(False)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            with torch.no_grad(), cast_once(policy, "cpu"):
                assert torch.is_autocast_cache_enabled()
                policy(IDS)
            assert not any(parameter.requires_grad for parameter in policy.parameters())
            with cast_once(policy, "cpu"):
                assert not torch.is_autocast_cache_enabled()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), cast_once(policy, "cpu"):
            policy(IDS)
        assert not any(parameter.requires_grad for parameter in policy.parameters())
