from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from parts import push_eos
from torch import Tensor
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ippo.errors import UsageError
from ippo.functional import token_logprobs
from ippo.models import response_logprobs
from ippo.rollout.engines.hf import HFGenerate
from ippo.rollout.sampling import Sampling
from ippo.rollout.sequences import Sequences

PROMPTS = ["Ava has 8 pens", "How many now?", "7", "Ben has 12 books, buys 3, loses 4. How many now?\n"]
SAMPLING = Sampling(max_new_tokens=24)


@pytest.fixture
def eos(tokenizer: PreTrainedTokenizerFast) -> int:
    return tokenizer.eos_token_id


def sample(
    tokenizer: PreTrainedTokenizerFast,
    policy: LlamaForCausalLM,
    prompts: Sequence[str] = PROMPTS,
    sampling: Sampling = SAMPLING,
    batch_size: int = 256,
) -> Sequences:
    torch.manual_seed(0)
    return HFGenerate(tokenizer, batch_size).generate(policy, prompts, sampling)


class TestLayout:
    def test_prompts_stand_in_order(self, tokenizer: PreTrainedTokenizerFast, policy: LlamaForCausalLM) -> None:
        sequences = sample(tokenizer, policy)
        rows = zip(sequences.prompt_ids, sequences.prompt_mask, strict=True)
        assert [tokenizer.decode(ids[mask]) for ids, mask in rows] == PROMPTS
        assert sequences.prompt_mask[:, -1].all()

    def test_responses_end_with_their_first_eos(
        self, tokenizer: PreTrainedTokenizerFast, policy: LlamaForCausalLM, eos: int
    ) -> None:
        sequences = sample(tokenizer, policy, PROMPTS * 8)
        finished = 0
        for ids, mask in zip(sequences.response_ids, sequences.response_mask, strict=True):
            length = int(mask.sum())
            assert mask[:length].all()
            assert eos not in ids[: length - 1]
            assert ids[length - 1] == eos or length == SAMPLING.max_new_tokens
            assert (ids[length:] == tokenizer.pad_token_id).all()
            finished += int(ids[length - 1] == eos)
        assert finished > 0
        assert sequences.response_ids.shape[1] == sequences.lengths.max()

    def test_pad_may_equal_eos(self, tokenizer: PreTrainedTokenizerFast, policy: LlamaForCausalLM) -> None:
        same = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>", pad_token="<eos>", padding_side="left"
        )
        apart, together = sample(tokenizer, policy, PROMPTS * 4), sample(same, policy, PROMPTS * 4)
        assert torch.equal(together.response_mask, apart.response_mask)
        assert torch.equal(together.prompt_mask, apart.prompt_mask)
        assert torch.equal(together.response_ids[together.response_mask], apart.response_ids[apart.response_mask])
        assert len(set(together.lengths.tolist())) > 1

    def test_a_policy_that_never_ends_fills_the_room(
        self, tokenizer: PreTrainedTokenizerFast, policy: LlamaForCausalLM, eos: int
    ) -> None:
        sequences = sample(tokenizer, push_eos(policy, -1e4), sampling=Sampling(max_new_tokens=5))
        assert sequences.lengths.tolist() == [5] * 4
        assert eos not in sequences.response_ids

    def test_a_policy_that_ends_at_once_leaves_one_token(
        self, tokenizer: PreTrainedTokenizerFast, policy: LlamaForCausalLM, eos: int
    ) -> None:
        assert sample(tokenizer, push_eos(policy)).response_ids.tolist() == [[eos]] * 4

    @pytest.mark.parametrize("batch_size", [1, 3, 4])
    def test_batches_change_neither_order_nor_layout(
        self, tokenizer: PreTrainedTokenizerFast, policy: LlamaForCausalLM, batch_size: int
    ) -> None:
        cold = Sampling(temperature=1e-4, max_new_tokens=12)  # no chance is left, so the rows must be the same
        whole, parts = (sample(tokenizer, policy, sampling=cold, batch_size=size) for size in (256, batch_size))
        for name, value in vars(whole).items():
            assert torch.equal(getattr(parts, name), value), name

    def test_a_budget_of_tokens_changes_neither(
        self, tokenizer: PreTrainedTokenizerFast, policy: LlamaForCausalLM
    ) -> None:
        widths = []
        policy.model.register_forward_hook(
            lambda module, args, kwargs, output: widths.append(output.last_hidden_state.shape[:2]), with_kwargs=True
        )
        cold = Sampling(temperature=1e-4, max_new_tokens=12)
        sample(tokenizer, policy, sampling=cold)  # a model's first rollout looks at it
        widths.clear()
        whole = sample(tokenizer, policy, sampling=cold)
        parts = sample(tokenizer, policy, sampling=Sampling(temperature=1e-4, max_new_tokens=12, batch_tokens=45))
        for name, value in vars(whole).items():
            assert torch.equal(getattr(parts, name), value), name
        prefills = [tuple(shape) for shape in widths if shape[1] > 1]
        assert prefills[0] == whole.prompt_ids.shape
        assert len(prefills) > 2
        assert all(rows * (columns + 12) <= 45 or rows == 1 for rows, columns in prefills[1:])


class TestDraws:
    def test_a_seed_repeats_them(self, tokenizer: PreTrainedTokenizerFast, policy: LlamaForCausalLM) -> None:
        first, second = sample(tokenizer, policy), sample(tokenizer, policy)
        third = HFGenerate(tokenizer).generate(policy, PROMPTS, SAMPLING)
        assert first.response_ids.tolist() == second.response_ids.tolist()
        assert first.response_ids.tolist() != third.response_ids.tolist()

    @pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
    def test_first_tokens_come_as_often_as_the_softmax_says(
        self, tokenizer: PreTrainedTokenizerFast, policy: LlamaForCausalLM, temperature: float
    ) -> None:
        prompt, count = "Ava has 8 pens", 4000
        one_token = Sampling(temperature=temperature, max_new_tokens=1)
        drawn = sample(tokenizer, policy, [prompt] * count, one_token, batch_size=1000).response_ids.flatten()
        with torch.no_grad():
            logits = policy(torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1]
        expected = (logits / temperature).softmax(0) * count
        observed = torch.bincount(drawn, minlength=len(expected)).float()

        often = expected >= 5  # all rarer tokens make one cell together
        cells = torch.stack([torch.cat([each[often], each[~often].sum()[None]]) for each in (observed, expected)])
        freedom = cells.shape[1] - 1
        chi_square = ((cells[0] - cells[1]) ** 2 / cells[1]).sum().item()
        assert freedom >= 3
        assert chi_square < freedom + 4 * (2 * freedom) ** 0.5

    def test_top_p_leaves_out_the_tail(self, tokenizer: PreTrainedTokenizerFast, policy: LlamaForCausalLM) -> None:
        prompt = "Ava has 8 pens"
        with torch.no_grad():
            probabilities = policy(torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1].softmax(0)
        ordered, tokens = probabilities.sort(descending=True)
        nucleus = tokens[ordered.cumsum(0) - ordered < 0.1]
        drawn = sample(tokenizer, policy, [prompt] * 1000, Sampling(max_new_tokens=1, top_p=0.1))
        assert set(drawn.response_ids.flatten().tolist()) == set(nucleus.tolist())

    def test_at_temperature_0_each_token_is_the_most_likely_whatever_the_models_own_settings(
        self, tokenizer: PreTrainedTokenizerFast, policy: LlamaForCausalLM
    ) -> None:
        hot = copy.deepcopy(policy)
        hot.generation_config = GenerationConfig(do_sample=True, temperature=9.0, top_k=3)
        before = torch.get_rng_state()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of transformers, on options of sampling that would not be heard
            found = HFGenerate(tokenizer).generate(hot, PROMPTS, Sampling(temperature=0.0, max_new_tokens=6))
        assert torch.equal(torch.get_rng_state(), before)
        ids = torch.cat([found.prompt_ids, found.response_ids], 1)
        mask = torch.cat([found.prompt_mask, found.response_mask], 1)
        with torch.no_grad():
            positions = (mask.long().cumsum(1) - 1).clamp(min=0)
            logits = policy(ids, attention_mask=mask.long(), position_ids=positions).logits
        likeliest = logits[:, found.prompt_ids.shape[1] - 1 : -1].argmax(-1)
        real = found.response_mask
        assert torch.equal(found.response_ids[real], likeliest[real])

    def test_logprobs_of_training_are_those_of_sampling(
        self, tokenizer: PreTrainedTokenizerFast, policy: LlamaForCausalLM
    ) -> None:
        steps: list[Tensor] = []
        listening = copy.deepcopy(policy)
        listening.lm_head.register_forward_hook(lambda module, inputs, logits: steps.append(logits[:, -1]))
        sample(tokenizer, listening, PROMPTS * 2)  # a model's first rollout looks at it
        steps.clear()
        sequences = sample(tokenizer, listening, PROMPTS * 2)

        width = sequences.response_ids.shape[1]
        sampled = token_logprobs(torch.stack(steps[:width], 1), sequences.response_ids)
        with torch.no_grad():
            trained = response_logprobs(policy, sequences)
        mask = sequences.response_mask
        torch.testing.assert_close(trained[mask], sampled[mask], rtol=0, atol=1e-5)


class TestModelsOwnSettings:
    @pytest.mark.parametrize("own", [{"top_k": 1}, {"repetition_penalty": 9.0}, {"max_new_tokens": 2}, {"top_p": 0.1}])
    def test_do_not_leak_into_the_draws(
        self, tokenizer: PreTrainedTokenizerFast, policy: LlamaForCausalLM, own: dict[str, Any]
    ) -> None:
        plain = sample(tokenizer, policy)
        policy.generation_config = GenerationConfig(do_sample=True, **own)
        before = policy.generation_config.to_dict()
        assert sample(tokenizer, policy).response_ids.tolist() == plain.response_ids.tolist()
        assert policy.generation_config.to_dict() == before

    @pytest.mark.parametrize("training", [True, False])
    def test_its_mode_is_given_back_and_dropout_is_off(
        self, tokenizer: PreTrainedTokenizerFast, policy: LlamaForCausalLM, training: bool
    ) -> None:
        plain = sample(tokenizer, policy)
        for layer in policy.model.layers:
            layer.self_attn.attention_dropout = 0.9
        policy.train(training)
        assert sample(tokenizer, policy).response_ids.tolist() == plain.response_ids.tolist()
        assert policy.training is training

    def test_a_part_held_in_evaluation_mode_stays_there(
        self, tokenizer: PreTrainedTokenizerFast, policy: LlamaForCausalLM
    ) -> None:
        policy.train().model.layers[0].eval()
        sample(tokenizer, policy)
        assert not policy.model.layers[0].training
        assert policy.model.layers[1].training

    def test_are_given_back_after_an_error(self, tokenizer: PreTrainedTokenizerFast, policy: LlamaForCausalLM) -> None:
        own = policy.generation_config

        def fail(*_: Any) -> None:
            raise RuntimeError("broken")

        policy.train().lm_head.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="broken"):
            sample(tokenizer, policy)
        assert policy.generation_config is own
        assert policy.training


def test_nan_logits_do_not_stop_the_draw(tokenizer: PreTrainedTokenizerFast, policy: LlamaForCausalLM) -> None:
    torch.nn.init.constant_(policy.model.norm.weight, float("nan"))
    sequences = sample(tokenizer, policy)
    assert len(sequences) == 4
    assert (sequences.lengths >= 1).all()


class TestRefusals:
    @pytest.mark.parametrize("missing", ["eos_token", "pad_token"])
    def test_a_tokenizer_without_a_token_it_needs(self, tokenizer: PreTrainedTokenizerFast, missing: str) -> None:
        tokens = {name: "<eos>" for name in ("eos_token", "pad_token") if name != missing}
        bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **tokens)
        with pytest.raises(UsageError, match=rf"tokenizer\.{missing} = None: set tokenizer\.{missing}"):
            HFGenerate(bare)

    def test_a_batch_of_nothing(self, tokenizer: PreTrainedTokenizerFast) -> None:
        with pytest.raises(UsageError, match="batch_size = 0"):
            HFGenerate(tokenizer, batch_size=0)

    @pytest.mark.parametrize(
        "option",
        [
            {"max_new_tokens": 0},
            {"top_p": 0.0},
            {"top_p": 1.1},
            {"temperature": -1.0},
            {"batch_tokens": 0},
        ],
    )
    def test_sampling_out_of_range(self, option: dict[str, Any]) -> None:
        ((name, value),) = option.items()
        with pytest.raises(UsageError, match=rf"sampling\.{name} = {value}: use"):
            Sampling(**option)
