"""Samples of one prompt go on from one reading of it, and are those of a reading each."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Gemma2Config,
    LlamaForCausalLM,
    MambaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from ippo.rollout.engines import hf
from ippo.rollout.engines.hf import HFGenerate
from ippo.rollout.prefill import shared_prefill
from ippo.rollout.sampling import Sampling
from ippo.rollout.sequences import pad_left

PROMPTS = ["Ava has 8 pens", "How many now?", "7", "Ben has 12 books, buys 3, loses 4. How many now?\n"]
SMALL = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 48}


def wide(config: Any) -> Any:
    """A model whose greedy answers differ from prompt to prompt."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def widths(policy: Any) -> list[tuple[int, int]]:
    """Rows and columns that the trunk reads, call by call."""
    found: list[tuple[int, int]] = []

    def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        found.append(tuple(output.last_hidden_state.shape[:2]))

    policy.base_model.register_forward_hook(note, with_kwargs=True)
    return found


class TestShared:
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    @pytest.mark.parametrize("of", ["llama", "gemma2", "qwen3"])
    def test_the_answers_are_those_of_a_reading_each(
        self,
        policy: LlamaForCausalLM,
        tokenizer: PreTrainedTokenizerFast,
        monkeypatch: pytest.MonkeyPatch,
        of: str,
        temperature: float,
    ) -> None:
        configs = {
            "gemma2": Gemma2Config(**SMALL, **HEADS, sliding_window=5, attn_implementation="eager"),
            "qwen3": Qwen3Config(**SMALL, **HEADS),
        }
        model = policy if of == "llama" else wide(configs[of])
        prompts, sampling = [prompt for prompt in PROMPTS for _ in range(3)], Sampling(temperature, max_new_tokens=12)

        def answers() -> Any:
            torch.manual_seed(3)
            return HFGenerate(tokenizer).generate(model, prompts, sampling)

        answers()
        calls = widths(model)
        shared = answers()
        assert calls[0] == (4, shared.prompt_ids.shape[1] - 1)
        assert set(calls[1:]) == {(12, 1)}
        monkeypatch.setattr(hf, "shared_prefill", lambda *_: None)
        apart = answers()
        assert torch.equal(shared.response_ids, apart.response_ids)
        assert len(set(map(tuple, shared.response_ids.tolist()))) >= 3
        if temperature:
            torch.testing.assert_close(shared.engine_logprobs, apart.engine_logprobs, rtol=0, atol=1e-5)

    def test_prompts_that_do_not_repeat_are_read_as_ever(
        self, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        greedy = Sampling(temperature=0.0, max_new_tokens=4)
        HFGenerate(tokenizer).generate(policy, PROMPTS, greedy)
        calls = widths(policy)
        HFGenerate(tokenizer).generate(policy, [*PROMPTS, PROMPTS[0]], greedy)
        assert calls[0][0] == 5


class TestNotShared:
    @pytest.mark.parametrize(
        "config",
        [
            MambaConfig(**SMALL, state_size=4),
            FalconH1Config(**SMALL, **HEADS, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=4),
        ],
        ids=["no keys and values", "states beside them that rows cannot share"],
    )
    def test_a_model_of_another_cache_samples_as_ever(self, tokenizer: PreTrainedTokenizerFast, config: Any) -> None:
        model = wide(config)
        ids, mask = pad_left([[5, 6, 7], [5, 6, 7]], 0)
        with torch.no_grad():
            assert shared_prefill(model, ids, mask) is None
        found = HFGenerate(tokenizer).generate(model, [PROMPTS[0]] * 2, Sampling(0.0, max_new_tokens=4))
        alone = HFGenerate(tokenizer).generate(model, [PROMPTS[0]], Sampling(0.0, max_new_tokens=4))
        assert found.response_ids.tolist() == alone.response_ids.tolist() * 2

    def test_one_token_leaves_nothing_to_share(self, policy: LlamaForCausalLM) -> None:
        assert shared_prefill(policy, torch.tensor([[5]] * 4), torch.ones(4, 1).bool()) is None

    def test_a_model_that_forgets_what_it_was_given_is_found_out(self, policy: LlamaForCausalLM) -> None:
        forgetful = copy.deepcopy(policy)
        own = forgetful.model.forward

        def forward(*args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
            if past_key_values is not None and past_key_values.get_seq_length() == 6:
                for layer in past_key_values.layers:
                    layer.keys = -layer.keys
            return own(*args, past_key_values=past_key_values, **kwargs)

        forgetful.model.forward = forward  # type: ignore[method-assign]
        ids = torch.tensor([[5, 6, 7]] * 4)
        with torch.no_grad():
            assert shared_prefill(policy, ids, ids.bool()) is not None
            assert shared_prefill(forgetful, ids, ids.bool()) is None
