"""Models that mind padding are right all the same; those that cannot be right are refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BertConfig,
    PreTrainedTokenizerFast,
    RecurrentGemmaConfig,
    RwkvConfig,
    XLNetConfig,
)

from ippo.errors import UsageError
from ippo.models import response_logprobs
from ippo.models.responses import states_before
from ippo.models.trunk import trunk_of
from ippo.rollout.engines.hf import HFGenerate
from ippo.rollout.engines.hf_check import require_same_when_generated
from ippo.rollout.sampling import Sampling
from ippo.rollout.sequences import Sequences
from ippo.rollout.soundness import minds_left_padding, require_causal

SHAPE: dict[str, Any] = {"vocab_size": 330, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
BART = BartConfig(vocab_size=330, d_model=16, decoder_ffn_dim=24, decoder_layers=2, decoder_attention_heads=2)
RECURRENT = RecurrentGemmaConfig(**SHAPE, num_attention_heads=2, attention_window_size=16, lru_width=16)


def build(config: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("config", [BART, RECURRENT], ids=["bart", "recurrent gemma"])
class TestModelsThatMindPadding:
    def test_are_told_apart(self, config: Any, policy: Any) -> None:
        assert minds_left_padding(build(config))
        assert not minds_left_padding(policy)

    @pytest.mark.parametrize("at_a_time", [2**24, 330 * 4 * 2], ids=["whole", "in parts"])
    def test_logprobs_and_states_are_those_of_each_row_alone(
        self, config: Any, at_a_time: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ippo.models.responses.LOGITS_AT_A_TIME", at_a_time)
        model, sequences = build(config), self.sequences()
        with torch.no_grad():
            found = response_logprobs(model, sequences)
            states = states_before(trunk_of(model), sequences)
            for row in range(len(sequences)):
                alone = sequences.rows(torch.tensor([row])).trim()
                length = int(alone.lengths)
                logits = model(alone.input_ids, use_cache=False).logits[0, -length - 1 : -1]
                expected = logits.log_softmax(-1).gather(-1, alone.response_ids[0, :, None])[:, 0]
                torch.testing.assert_close(found[row, :length], expected, rtol=0, atol=1e-5)
                hidden = trunk_of(model)(alone.input_ids, use_cache=False).last_hidden_state[0, -length - 1 : -1]
                torch.testing.assert_close(states[row, :length], hidden, rtol=0, atol=1e-4)

    def test_sample_from_what_they_say_of_each_row_alone(self, config: Any, tokenizer: PreTrainedTokenizerFast) -> None:
        model = build(config)
        prompts = ["Ava has 8 pens.", "Ben", "Ava has 8 pens and 3 hats.", "Eve"]
        for budget in (None, 64):
            drawn = HFGenerate(tokenizer).generate(model, prompts, Sampling(0.0, max_new_tokens=4, batch_tokens=budget))
            for row in range(len(prompts)):
                alone = drawn.rows(torch.tensor([row])).trim()
                length = int(alone.lengths)
                with torch.no_grad():
                    logits = model(alone.input_ids, use_cache=False).logits[0, -length - 1 : -1]
                chosen = logits.gather(-1, alone.response_ids[0, :, None])[:, 0]
                torch.testing.assert_close(chosen, logits.max(-1).values, rtol=0, atol=1e-4)

    @staticmethod
    def sequences() -> Sequences:
        ids: Tensor = torch.randint(4, 330, (4, 12), generator=torch.Generator().manual_seed(1))
        prompt = torch.arange(5) >= torch.tensor([[0], [3], [1], [4]])
        response = torch.arange(7) < torch.tensor([[7], [2], [5], [7]])
        return Sequences(ids[:, :5], prompt, ids[:, 5:], response)


BERT = BertConfig(**SHAPE, num_attention_heads=2)
XLNET = XLNetConfig(vocab_size=330, d_model=16, n_layer=2, n_head=2, d_inner=24)


@pytest.mark.parametrize("config", [BERT, XLNET], ids=["bert", "xlnet"])
def test_a_model_that_sees_what_follows_is_refused(config: Any) -> None:
    with pytest.raises(UsageError, match=r"policy = '(Bert|XLNet)LMHeadModel': .*depends on those that follow"):
        require_causal(build(config))


def test_a_model_that_generates_otherwise_than_it_reads_is_refused(policy: Any) -> None:
    require_same_when_generated(policy)
    rwkv = build(RwkvConfig(vocab_size=330, hidden_size=16, attention_hidden_size=16, num_hidden_layers=2))
    with pytest.raises(UsageError, match=r"policy = 'RwkvForCausalLM': transformers generates from other"):
        require_same_when_generated(rwkv)
