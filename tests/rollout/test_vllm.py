"""The engine against a stand-in for vLLM that samples with Hugging Face: vLLM itself needs a GPU of its own kind."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from parts import MakeModule, MakeTrainer, Recorder, push_eos
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ippo import PromptDataModule
from ippo.errors import UsageError
from ippo.rollout.engines.vllm import VLLMGenerate
from ippo.rollout.sampling import Sampling


class StandIn:
    """What of ``vllm.LLM`` is used, and nothing more, on weights of its own."""

    def __init__(self, model: LlamaForCausalLM, **options: Any) -> None:
        self.model, self.options, self.resets = model, options, 0
        loader = SimpleNamespace(load_weights=lambda weights: self.model.load_state_dict(dict(weights)))
        worker = SimpleNamespace(model_runner=SimpleNamespace(model=loader))
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))

    def reset_prefix_cache(self) -> None:
        self.resets += 1

    def generate(self, prompts: Sequence[Mapping[str, Any]], requests: Sequence[Any], use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        return [self._answer(*pair) for pair in zip(prompts, requests, strict=True)]

    def _answer(self, prompt: Mapping[str, Any], request: Any) -> Any:
        ends, ids = request.stop_token_ids, torch.tensor([prompt["prompt_token_ids"]])
        assert request.ignore_eos  # no other ends than those that it is told
        with torch.random.fork_rng():
            torch.manual_seed(request.seed)
            drawn = self.model.generate(
                ids,
                do_sample=True,
                temperature=request.temperature,
                top_p=request.top_p,
                top_k=0,
                max_new_tokens=request.max_tokens,
                eos_token_id=ends,
                pad_token_id=self.model.config.pad_token_id,
            )[0, ids.shape[1] :].tolist()
        ended = drawn[-1] in ends
        # Older releases leave the token out that ended a response.
        output = SimpleNamespace(
            token_ids=tuple(drawn[:-1] if ended else drawn),
            finish_reason="stop" if ended else "length",
            stop_reason=drawn[-1] if ended else None,
        )
        return SimpleNamespace(outputs=[output])


@pytest.fixture
def make_engine(
    monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast, shared_policy: LlamaForCausalLM
) -> Any:
    vllm: Any = ModuleType("vllm")
    vllm.LLM, vllm.SamplingParams = StandIn, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    return lambda **options: VLLMGenerate(tokenizer, copy.deepcopy(shared_policy), **options)  # type: ignore[arg-type]


def test_responses_are_padded_masked_and_closed(
    make_engine: Any, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = make_engine(gpu_memory_utilization=0.3)
    found = engine.generate(policy, ["What is 1+1?\n", "2?\n", "3?\n"] * 4, Sampling(max_new_tokens=12))
    assert engine.llm.options == {"gpu_memory_utilization": 0.3}
    assert len(set(found.lengths.tolist())) > 2
    last = found.response_ids.gather(1, found.lengths.unsqueeze(1) - 1).squeeze(1)
    assert ((last == tokenizer.eos_token_id) | (found.lengths == 12)).all()
    assert (last == tokenizer.eos_token_id).any()
    assert found.finished is not None
    assert torch.equal(found.finished, last == tokenizer.eos_token_id)
    assert found.prompt_mask[:, -1].all()
    assert not found.prompt_mask[1, 0]
    assert (found.response_ids[~found.response_mask] == tokenizer.pad_token_id).all()


def test_it_samples_from_the_policy_as_it_is(make_engine: Any, policy: LlamaForCausalLM) -> None:
    engine = make_engine()
    torch.manual_seed(1)
    before = engine.generate(policy, ["2?\n"] * 6, Sampling(max_new_tokens=8))
    torch.manual_seed(1)
    again = engine.generate(policy, ["2?\n"] * 6, Sampling(max_new_tokens=8))
    with torch.no_grad():
        policy.lm_head.weight[7] += 40 * policy.lm_head.weight[7].sign()
    torch.manual_seed(1)
    after = engine.generate(policy, ["2?\n"] * 6, Sampling(max_new_tokens=8))
    assert torch.equal(before.response_ids, again.response_ids)
    assert after.response_ids.shape != before.response_ids.shape or not torch.equal(
        after.response_ids, before.response_ids
    )
    assert engine.llm.resets == 3


def test_a_response_that_ends_at_once_is_one_token(make_engine: Any, policy: LlamaForCausalLM) -> None:
    engine = make_engine()
    push_eos(engine.llm.model)
    found = engine.generate(policy, ["2?\n"] * 3, Sampling(max_new_tokens=8))
    assert found.response_ids.tolist() == [[policy.config.eos_token_id]] * 3


def test_every_end_that_the_policy_declares_ends_a_response(make_engine: Any, policy: LlamaForCausalLM) -> None:
    engine, other = make_engine(), 7
    assert policy.generation_config is not None
    policy.generation_config.eos_token_id = [policy.config.eos_token_id, other]
    engine.llm.model.lm_head.register_forward_hook(
        lambda module, inputs, logits: logits.index_fill(-1, torch.tensor(other), 1e5)
    )
    found = engine.generate(policy, ["2?\n"] * 3, Sampling(max_new_tokens=8))
    assert found.response_ids.tolist() == [[other]] * 3
    assert found.finished is not None
    assert found.finished.all()


def test_ppo_trains_on_what_it_samples(
    make_engine: Any, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, recorder: Recorder
) -> None:
    module = make_module(engine=make_engine(), samples_per_prompt=2)
    make_trainer(recorder, max_epochs=2).fit(module, data)
    assert [curves["ppo/mismatch"] < 1e-6 for curves in recorder.curves] == [True, True]
    trained, sampled = module.model.policy.state_dict(), module.engine.llm.model.state_dict()
    assert any(not torch.equal(trained[name], value) for name, value in sampled.items())  # one update behind


def test_without_vllm_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UsageError, match="vLLM is missing: pip install vllm"):
        VLLMGenerate(tokenizer, "anything")
