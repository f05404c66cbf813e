from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from parts import MakeModule, always, push_eos
from torch import Tensor
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ippo.data import Columns
from ippo.errors import UsageError
from ippo.rollout.end_tokens import EndTokens, declared_ends, end_tokens, turn_end
from ippo.rollout.engines.hf import HFGenerate
from ippo.rollout.sampling import Sampling
from ippo.rollout.sequences import Sequences

TURN = "<end_of_turn>"
TURNS = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}" + TURN + "\n{% endfor %}"


@pytest.fixture
def chatty(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer whose chat template ends a turn with a token of its own, which takes the place of a text's token."""
    copied = copy.deepcopy(tokenizer)
    copied.add_special_tokens({"additional_special_tokens": [TURN]})  # type: ignore[dict-item]
    copied.chat_template = TURNS
    return copied


@pytest.fixture
def wide(policy: LlamaForCausalLM, chatty: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    policy.resize_token_embeddings(len(chatty))
    return policy


class TestWhatCounts:
    def test_all_that_generation_config_configuration_and_tokenizer_declare(
        self, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        policy.generation_config = GenerationConfig(eos_token_id=[7, 9])
        policy.config.eos_token_id = 11
        assert declared_ends(policy) == {7, 9, 11}
        assert end_tokens(policy, tokenizer).ids == tuple(sorted({7, 9, 11, tokenizer.eos_token_id}))

    @pytest.mark.parametrize("none", [None, [], -1])
    def test_a_model_that_declares_none_has_its_tokenizers(
        self, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, none: Any
    ) -> None:
        policy.generation_config = GenerationConfig()
        policy.config.eos_token_id = policy.generation_config.eos_token_id = none
        eos = tokenizer.eos_token_id
        assert end_tokens(policy, tokenizer) == EndTokens((eos,), closing=eos)

    def test_what_the_template_writes_at_the_end_of_a_turn(
        self, wide: LlamaForCausalLM, chatty: PreTrainedTokenizerFast
    ) -> None:
        turn = chatty.convert_tokens_to_ids(TURN)
        assert turn_end(chatty) == turn
        assert turn in end_tokens(wide, chatty).ids

    @pytest.mark.parametrize(
        "template",
        [
            "{% for m in messages %}{{ m.content }}\n### {% endfor %}",
            "{% for m in messages %}{{ m.content }}{% endfor %}",
            "{{ raise_exception('only the user may speak') }}",
            "{% for m in messages if m.role == 'user' %}{{ m.content }}<eos>{% endfor %}",
        ],
        ids=["words", "nothing", "raises", "leaves the assistant out"],
    )
    def test_a_template_without_such_a_token_adds_none(self, tokenizer: PreTrainedTokenizerFast, template: str) -> None:
        other = copy.deepcopy(tokenizer)
        other.chat_template = template
        assert turn_end(other) is None


class TestWhatClosesADemonstration:
    def test_the_templates_end_where_the_model_knows_it(
        self, wide: LlamaForCausalLM, chatty: PreTrainedTokenizerFast
    ) -> None:
        turn = chatty.convert_tokens_to_ids(TURN)
        wide.generation_config = GenerationConfig(eos_token_id=[chatty.eos_token_id, turn])
        assert end_tokens(wide, chatty).closing == turn

    def test_the_tokenizers_own_where_it_does_not(
        self, wide: LlamaForCausalLM, chatty: PreTrainedTokenizerFast
    ) -> None:
        assert end_tokens(wide, chatty).closing == chatty.eos_token_id


class TestAResponse:
    @pytest.mark.parametrize("temperature", [1.0, 0.0])
    @pytest.mark.parametrize("which", ["eos", "another"])
    def test_that_ends_with_any_declared_token_is_finished(
        self,
        make_module: MakeModule,
        policy: LlamaForCausalLM,
        tokenizer: PreTrainedTokenizerFast,
        batch: Columns,
        which: str,
        temperature: float,
    ) -> None:
        other = tokenizer.convert_tokens_to_ids("#")
        policy.generation_config = GenerationConfig(eos_token_id=[tokenizer.eos_token_id, other])
        end = tokenizer.eos_token_id if which == "eos" else other
        module = make_module(always(policy, end), reward=lambda prompts, completions, **_: [1.0] * len(prompts))
        drawn = module.engine.generate(module.model.policy, batch["prompt"], Sampling(temperature, max_new_tokens=8))
        assert drawn.response_ids.tolist() == [[end]] * 4
        episodes = module.roll_out(batch)
        assert episodes.finished.all()
        assert episodes.lengths.unique().tolist() == [1]
        assert episodes.rewards.tolist() == [1.0] * 16

    def test_is_cut_at_the_first_end_though_pad_is_one_of_them(
        self, tokenizer: PreTrainedTokenizerFast, policy: LlamaForCausalLM
    ) -> None:
        policy.generation_config = GenerationConfig(eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id])
        torch.manual_seed(0)
        found = HFGenerate(tokenizer).generate(policy, ["Ava has 8 pens"] * 32, Sampling(max_new_tokens=24))
        ends = end_tokens(policy, tokenizer)
        assert tokenizer.pad_token_id in ends.ids
        assert found.finished is not None
        assert 0 < found.finished.sum() < 32
        for ids, mask, ended in zip(found.response_ids, found.response_mask, found.finished, strict=True):
            real = ids[mask].tolist()
            assert not set(real[:-1]) & set(ends.ids)
            assert ended == (real[-1] in ends.ids)

    def test_the_models_own_configs_are_left_as_they_are(
        self, tokenizer: PreTrainedTokenizerFast, policy: LlamaForCausalLM
    ) -> None:
        policy.generation_config = GenerationConfig(eos_token_id=[1, 7])
        HFGenerate(tokenizer).generate(policy, ["7"], Sampling(max_new_tokens=4))
        assert policy.generation_config.eos_token_id == [1, 7]


def responses(*rows: list[int], finished: Tensor | None = None) -> Sequences:
    """Responses that an engine might return to a prompt of one token; 0 is padding."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[place < len(row) for place in range(width)] for row in rows])
    prompt = torch.ones(len(rows), 1, dtype=torch.long)
    return Sequences(prompt, prompt.bool(), ids, mask, finished=finished)


class TestWhatAnEngineSays:
    ENDS = EndTokens((4, 9), closing=4)

    def test_holds(self) -> None:
        said = torch.tensor([False, True])
        assert self.ENDS.finished(responses([7, 4], [7, 7], finished=said), max_new_tokens=9) is said

    def test_if_it_says_nothing_the_last_token_tells(self) -> None:
        silent = responses([7, 4], [7, 9], [9], [7, 7, 7])
        assert self.ENDS.finished(silent, max_new_tokens=3).tolist() == [True, True, True, False]

    @pytest.mark.parametrize("row", [[7, 7], []], ids=["some tokens", "none"])
    def test_silence_about_stripped_ends_is_refused(self, row: list[int]) -> None:
        found = rf"engine = 'a response of {len(row)} tokens': .* max_new_tokens = 3 .* finished"
        with pytest.raises(UsageError, match=found):
            self.ENDS.finished(responses([7, 7, 4], row), max_new_tokens=3)

    def test_reaches_the_episodes(self, make_module: MakeModule, policy: LlamaForCausalLM, batch: Columns) -> None:
        class Never(HFGenerate):
            def generate(self, *arguments: Any) -> Sequences:
                drawn = super().generate(*arguments)
                return dataclasses.replace(drawn, finished=torch.zeros(len(drawn), dtype=torch.bool))

        module = make_module(push_eos(policy))
        module.engine = Never(module.tokenizer)
        episodes = module.roll_out(batch)
        assert not episodes.finished.any()
        assert not episodes.rewards.any()
