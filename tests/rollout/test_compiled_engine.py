"""The compiled engine gives what ``hf`` gives, token by token, compiles a few times, and knows when it cannot."""

from __future__ import annotations

import shutil
import warnings
from typing import Any

import pytest
import torch
from parts import MakeModule, MakeTrainer, Recorder, push_eos
from test_adapters import adapted
from test_prefill import HEADS, SMALL, wide
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import Gemma2Config, GPT2Config, LlamaForCausalLM, MambaConfig, PreTrainedTokenizerFast, Qwen3Config

from ippo import PromptDataModule
from ippo.errors import UsageError
from ippo.rollout import static_decoding
from ippo.rollout.engines import compiled
from ippo.rollout.engines.compiled import CompiledGenerate
from ippo.rollout.engines.hf import HFGenerate
from ippo.rollout.grouped_attention import grouped, grouped_attention
from ippo.rollout.sampling import Sampling
from ippo.rollout.sequences import Sequences

PROMPTS = ["Ava has 8 pens", "How many now?", "7", "Ben has 12 books, buys 3, loses 4. How many now?\n"]
GREEDY = Sampling(temperature=0.0, max_new_tokens=20)
CONFIGS = {
    "sliding": Qwen3Config(**SMALL, **HEADS, use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "eager": Gemma2Config(**SMALL, **HEADS, sliding_window=5, attn_implementation="eager"),
    "positions": GPT2Config(vocab_size=320, n_positions=64, n_embd=32, n_layer=2, n_head=2),
}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    counters.clear()


@pytest.fixture
def engine(tokenizer: PreTrainedTokenizerFast) -> CompiledGenerate:
    """Run by Python: the same program without the minute that a C++ compiler takes."""
    return CompiledGenerate(tokenizer, backend="eager")


def same(found: Sequences, expected: Sequences) -> None:
    assert torch.equal(found.response_ids, expected.response_ids)
    assert torch.equal(found.response_mask, expected.response_mask)
    assert found.finished is not None
    assert expected.finished is not None
    assert torch.equal(found.finished, expected.finished)


class TestSameAsHF:
    @pytest.mark.parametrize("of", ["llama", *CONFIGS])
    @pytest.mark.parametrize("batch_size", [256, 3])
    def test_greedy_answers_token_by_token_after_each_change_of_weights(
        self,
        policy: LlamaForCausalLM,
        tokenizer: PreTrainedTokenizerFast,
        engine: CompiledGenerate,
        of: str,
        batch_size: int,
    ) -> None:
        model: Any = policy if of == "llama" else wide(CONFIGS[of])
        engine.batch_size, answers = batch_size, set()
        for _ in range(2):
            found = engine.generate(model, PROMPTS, GREEDY)
            same(found, HFGenerate(tokenizer).generate(model, PROMPTS, GREEDY))
            answers.add(str(found.response_ids.tolist()))
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
        assert len(answers) == 2
        assert counters["stats"]["unique_graphs"] >= 1

    @pytest.mark.parametrize("temperature", [1.0, 0.7])
    def test_draws_of_a_seed_and_their_logprobs(
        self,
        policy: LlamaForCausalLM,
        tokenizer: PreTrainedTokenizerFast,
        engine: CompiledGenerate,
        temperature: float,
    ) -> None:
        sampling = Sampling(temperature, max_new_tokens=4)  # before any row leaves, when the draws are the same
        prompts = [prompt for prompt in PROMPTS for _ in range(4)]
        torch.manual_seed(0)
        found = engine.generate(policy, prompts, sampling)
        torch.manual_seed(0)
        expected = HFGenerate(tokenizer).generate(policy, prompts, sampling)
        same(found, expected)
        torch.testing.assert_close(found.engine_logprobs, expected.engine_logprobs, rtol=0, atol=1e-5)

    def test_nucleus_sampling_is_that_of_hf(
        self, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, engine: CompiledGenerate
    ) -> None:
        sampling = Sampling(top_p=0.5, max_new_tokens=6)
        torch.manual_seed(0)
        found = engine.generate(policy, PROMPTS, sampling)
        torch.manual_seed(0)
        same(found, HFGenerate(tokenizer).generate(policy, PROMPTS, sampling))

    @pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
    def test_adapters_are_merged(
        self, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, engine: CompiledGenerate, precision: Any
    ) -> None:
        models = adapted(policy)
        with torch.autocast("cpu", precision, enabled=precision != torch.float32, cache_enabled=False):
            for _ in range(2):
                found = engine.generate(models.policy, PROMPTS, GREEDY)
                same(found, HFGenerate(tokenizer).generate(models.policy, PROMPTS, GREEDY))
                with torch.no_grad():
                    models.policy.model.layers[0].mlp.up_proj.lora_B["default"].weight.add_(0.3)
        assert not any(parameter.dtype == torch.bfloat16 for parameter in models.policy.parameters())

    def test_in_validation_it_needs_no_program_of_its_own(
        self, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, engine: CompiledGenerate
    ) -> None:
        engine.generate(policy, PROMPTS, GREEDY)
        programs = counters["stats"]["unique_graphs"]
        with torch.inference_mode():
            found = engine.generate(policy, PROMPTS, GREEDY)
        same(found, HFGenerate(tokenizer).generate(policy, PROMPTS, GREEDY))
        assert counters["stats"]["unique_graphs"] == programs

    def test_ppo_trains_on_what_it_samples(
        self,
        make_module: MakeModule,
        make_trainer: MakeTrainer,
        data: PromptDataModule,
        recorder: Recorder,
        engine: CompiledGenerate,
    ) -> None:
        make_trainer(recorder, max_epochs=3).fit(make_module(engine=engine, learning_rate=0.01), data)
        for curves in recorder.curves:
            assert curves["ppo/engine_gap"] < 1e-5
            assert abs(curves["ppo/importance"] - 1) < 1e-5  # on, because its kernels are others
            assert curves["ppo/mismatch"] < 1e-6

    @pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
    def test_compiled_by_inductor(self, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
        engine = CompiledGenerate(tokenizer)
        same(engine.generate(policy, PROMPTS, GREEDY), HFGenerate(tokenizer).generate(policy, PROMPTS, GREEDY))


class TestPrograms:
    def test_batches_of_many_shapes_share_a_few(self, policy: LlamaForCausalLM, engine: CompiledGenerate) -> None:
        torch.manual_seed(0)
        for count, new, temperature in ((4, 9, 1.0), (8, 12, 0.7), (16, 20, 1.0), (11, 30, 0.0), (30, 7, 1.3)):
            engine.generate(policy, (PROMPTS * 8)[:count], Sampling(temperature, max_new_tokens=new))
        assert counters["stats"]["unique_graphs"] <= 4

    def test_the_same_sizes_compile_nothing_again(self, policy: LlamaForCausalLM, engine: CompiledGenerate) -> None:
        engine.generate(policy, PROMPTS, GREEDY)
        programs = counters["stats"]["unique_graphs"]
        for _ in range(3):
            engine.generate(policy, PROMPTS, GREEDY)
        assert counters["stats"]["unique_graphs"] == programs


class TestRowsLeave:
    def test_the_batch_becomes_smaller_and_the_answers_stay(
        self,
        policy: LlamaForCausalLM,
        tokenizer: PreTrainedTokenizerFast,
        engine: CompiledGenerate,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        sizes: list[int] = []
        own = static_decoding.step

        def noting(policy: Any, cache: Any, ids: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
            sizes.append(len(ids))
            return own(policy, cache, ids, *others)

        monkeypatch.setattr(engine, "_step", lambda device: noting)
        monkeypatch.setattr(static_decoding, "LOOK_EVERY", 1)
        prompts = [f"{first}{second} pens" for first in range(8) for second in range(8)]
        sampling = Sampling(temperature=0.0, max_new_tokens=30)
        found = engine.generate(policy, prompts, sampling)
        same(found, HFGenerate(tokenizer).generate(policy, prompts, sampling))
        assert sizes[0] == 64
        assert sorted(set(sizes), reverse=True) == list(dict.fromkeys(sizes))  # and never grows
        assert len(set(sizes)) > 1
        assert found.finished is not None
        assert found.finished.any()

    def test_it_ends_with_its_last_row(self, policy: LlamaForCausalLM, engine: CompiledGenerate) -> None:
        steps = []
        step = engine._step("cpu")
        engine._steps["cpu"] = lambda *arguments: (steps.append(1), step(*arguments))[1]  # type: ignore[assignment]
        found = engine.generate(push_eos(policy), PROMPTS, Sampling(max_new_tokens=40))
        assert found.lengths.tolist() == [1] * 4
        assert len(steps) == static_decoding.LOOK_EVERY


class TestKeptCaches:
    @pytest.mark.parametrize("of", ["llama", "sliding"])
    def test_stay_where_they_are_and_forget_what_was_in_them(
        self, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, of: str
    ) -> None:
        monkeypatch.setattr(static_decoding, "LOOK_EVERY", 1)
        model: Any = policy if of == "llama" else wide(CONFIGS[of])
        engine, places = CompiledGenerate(tokenizer, backend="eager", keep_caches=True), []
        prompts = [f"{first}{second} pens" for first in range(6) for second in range(6)]
        for chosen in (prompts, prompts[::-1]):
            found = engine.generate(model, chosen, GREEDY)
            same(found, HFGenerate(tokenizer).generate(model, chosen, GREEDY))
            layers = {sizes: cache.layers for sizes, cache in engine._kept.items()}
            tensors = ("keys", "values", "cumulative_length")
            places.append({(s, n): getattr(two[1], n).data_ptr() for s, two in layers.items() for n in tensors})
        assert places[0].items() <= places[1].items()
        assert len(set(places[0].values())) == len(places[0])


class TestFallback:
    def test_a_model_without_a_static_cache_is_sampled_by_hf_and_it_is_said_once(
        self, tokenizer: PreTrainedTokenizerFast, engine: CompiledGenerate
    ) -> None:
        model = wide(MambaConfig(**SMALL, state_size=4))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                found = engine.generate(model, PROMPTS, GREEDY)
        same(found, HFGenerate(tokenizer).generate(model, PROMPTS, GREEDY))
        said = [str(one.message) for one in caught if "engine compiled" in str(one.message)]
        assert len(said) == 1
        assert said[0].startswith("engine compiled: MambaForCausalLM ")
        assert "as by --engine hf" in said[0]

    def test_a_model_that_decodes_otherwise_than_it_reads_is_found_out(
        self, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, engine: CompiledGenerate
    ) -> None:
        attention = policy.model.layers[0].self_attn
        own = attention.forward

        def forward(*args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
            if past_key_values is not None and past_key_values.is_compileable:
                kwargs["attention_mask"] = None
            return own(*args, past_key_values=past_key_values, **kwargs)

        attention.forward = forward
        with pytest.warns(UserWarning, match="decodes otherwise over a static cache than it reads"):
            found = engine.generate(policy, PROMPTS, GREEDY)
        same(found, HFGenerate(tokenizer).generate(policy, PROMPTS, GREEDY))

    def test_without_a_compiler_python_runs_the_step_and_it_is_said_once(
        self, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compiled._inductor_works.cache_clear()
        monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
        monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
        with pytest.warns(UserWarning, match="inductor does not work here"):
            found = CompiledGenerate(tokenizer).generate(policy, PROMPTS, GREEDY)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            CompiledGenerate(tokenizer).generate(policy, PROMPTS, GREEDY)
        compiled._inductor_works.cache_clear()
        same(found, HFGenerate(tokenizer).generate(policy, PROMPTS, GREEDY))

    def test_prompts_of_one_token(
        self, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, engine: CompiledGenerate
    ) -> None:
        same(engine.generate(policy, ["7"], GREEDY), HFGenerate(tokenizer).generate(policy, ["7"], GREEDY))

    def test_a_backend_that_is_none_is_refused(self, tokenizer: PreTrainedTokenizerFast) -> None:
        with pytest.raises(UsageError, match="backend = 'gcc'"):
            CompiledGenerate(tokenizer, backend="gcc")  # type: ignore[arg-type]


class TestGroupedAttention:
    def test_it_is_attention_with_keys_repeated_for_each_head(self) -> None:
        query, key, value = torch.randn(3, 6, 1, 8), torch.randn(3, 2, 5, 8), torch.randn(3, 2, 5, 8)
        mask = torch.arange(5).expand(3, 1, 1, 5) < torch.tensor([5, 2, 3])[:, None, None, None]
        scores = torch.einsum("nhd,nhld->nhl", query[:, :, 0], key.repeat_interleave(3, 1)) * 0.3
        weights = scores.masked_fill(~mask[:, :, 0], -torch.inf).softmax(-1)
        by_hand = torch.einsum("nhl,nhld->nhd", weights, value.repeat_interleave(3, 1))[:, None]
        found, _ = grouped_attention(torch.nn.Identity(), query, key, value, mask, scaling=0.3)
        torch.testing.assert_close(found, by_hand)

    def test_the_policy_s_own_comes_back(self, policy: LlamaForCausalLM) -> None:
        with grouped(policy):
            assert policy.config._attn_implementation == "ippo_grouped"
        assert policy.config._attn_implementation == "sdpa"
