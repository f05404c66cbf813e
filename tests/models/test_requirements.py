from __future__ import annotations

import copy
from typing import Any

import pytest
from parts import MakeModule
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaForCausalLM, LlamaModel, PreTrainedTokenizerFast

from ippo.errors import UsageError
from ippo.models import LoraModels, SeparateModels, SharedModels
from ippo.models.requirements import require_tokens
from ippo.rollout.engines.hf import HFGenerate
from ippo.rollout.sampling import Sampling

LAYOUTS = [SeparateModels, SharedModels, LoraModels]


class TestAPolicyThatPeftHasWrapped:
    @pytest.fixture(params=[None, "CAUSAL_LM"])
    def wrapped(self, policy: LlamaForCausalLM, request: pytest.FixtureRequest) -> Any:
        policy.generation_config.top_k = 1  # type: ignore[union-attr]
        return get_peft_model(policy, LoraConfig(r=2, target_modules=["q_proj"], task_type=request.param))

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_no_layout_takes_it(self, wrapped: Any, layout: Any) -> None:
        with pytest.raises(UsageError, match=r"policy = 'Peft.*': PEFT has wrapped it: .* --layout lora"):
            layout(wrapped)

    def test_nothing_is_sampled_from_it_by_its_own_settings(
        self, wrapped: Any, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        with pytest.raises(UsageError, match="PEFT has wrapped it"):
            HFGenerate(tokenizer).generate(wrapped, ["Ava has 8 pens"], Sampling())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_layout_takes_a_model_without_a_language_head(shared_policy: LlamaForCausalLM, layout: Any) -> None:
    with pytest.raises(UsageError, match="policy = 'LlamaModel': it has no language head"):
        layout(LlamaModel(shared_policy.config))


class TestTokens:
    def test_a_pad_token_beyond_the_embeddings(
        self, make_module: MakeModule, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        wider = copy.deepcopy(tokenizer)
        wider.add_special_tokens({"pad_token": "[PAD]"})
        found = r"tokenizer\.pad_token = '\[PAD\]': its id is 320, and the policy has 320 embeddings.*eos_token will do"
        with pytest.raises(UsageError, match=found):
            require_tokens(policy, wider)

    def test_a_vocabulary_smaller_than_the_tokenizers(
        self, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        policy.resize_token_embeddings(300)
        with pytest.raises(UsageError, match="tokenizer = '320 tokens': the policy has 300 embeddings: give"):
            require_tokens(policy, tokenizer)

    def test_no_pad_token(self, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
        bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>")
        with pytest.raises(UsageError, match=r"tokenizer\.pad_token = None: set tokenizer\.pad_token"):
            require_tokens(policy, bare)


def test_a_model_of_a_decoder_alone_is_taken_though_its_family_has_encoders() -> None:
    from transformers import BartConfig

    shape = {"d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "vocab_size": 32}
    SeparateModels(AutoModelForCausalLM.from_config(BartConfig(**shape, encoder_layers=1)))  # type: ignore[arg-type]
