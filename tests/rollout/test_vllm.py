"""The vLLM engines against stand-ins that sample with Hugging Face: what is asked, handed over and made of the answers.
vLLM itself is asked by ``make test-vllm`` (``test_real_vllm.py``)."""

from __future__ import annotations

import copy
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from parts import MakeModule, MakeTrainer, Recorder
from safetensors.torch import load_file
from test_adapters import adapted
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ippo import PromptDataModule
from ippo.errors import UsageError
from ippo.models import response_logprobs
from ippo.rollout.engines.hf import HFGenerate
from ippo.rollout.engines.vllm import VLLMGenerate
from ippo.rollout.engines.vllm_server import VLLMServer
from ippo.rollout.sampling import Sampling
from ippo.rollout.weights_file import write_weights

PROMPTS = ["What is 1+1?\n", "2?\n", "3?\n"] * 4
KINDS = ("in this process", "server")


class Sampler:
    """Answers requests from weights of its own, which it takes from a file."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model, self.resets, self.loads = copy.deepcopy(model), 0, 0

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        assert method == "reload_weights"
        weights = load_file(Path(kwargs["weights_path"]) / "model.safetensors")
        self.model.load_state_dict(weights, strict=False)
        self.loads += 1

    def reset_prefix_cache(self) -> None:
        self.resets += 1

    def answer(self, prompt: Sequence[int], request: dict[str, Any]) -> tuple[list[int], list[float], bool]:
        assert request["ignore_eos"]  # no other ends than those that it is told
        assert request["logprobs"] == 0
        hot, tokens, told = request["temperature"], list(prompt), []
        draws = torch.Generator().manual_seed(request["seed"])
        while len(tokens) - len(prompt) < request["max_tokens"]:
            with torch.no_grad():
                logprobs = (self.model(torch.tensor([tokens])).logits[0, -1] / (hot or 1.0)).log_softmax(-1)
            token = int(torch.multinomial(logprobs.exp(), 1, generator=draws)) if hot else int(logprobs.argmax())
            tokens.append(token)
            told.append(float(logprobs[token]))
            if token in request["stop_token_ids"]:
                return tokens[len(prompt) :], told, True
        return tokens[len(prompt) :], told, False


class StandIn(Sampler):
    """What of ``vllm.LLM`` is used, and nothing more."""

    def __init__(self, folder: str, model: LlamaForCausalLM, **options: Any) -> None:
        super().__init__(model)
        assert {path.name for path in Path(folder).iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
        self.collective_rpc("reload_weights", {"weights_path": folder})
        self.options = options

    def generate(self, prompts: Sequence[Any], requests: Sequence[Any], use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        return [self._output(one["prompt_token_ids"], request) for one, request in zip(prompts, requests, strict=True)]

    def _output(self, prompt: Sequence[int], request: Any) -> Any:
        tokens, told, ended = self.answer(prompt, vars(request))
        logprobs = [{token: SimpleNamespace(logprob=one)} for token, one in zip(tokens, told, strict=True)]
        reason = "stop" if ended else "length"
        output = SimpleNamespace(token_ids=tuple(tokens), logprobs=logprobs, finish_reason=reason)
        return SimpleNamespace(outputs=[output])


class Handler(BaseHTTPRequestHandler):
    """The server's four addresses."""

    sampler: Sampler
    lock = threading.Lock()

    def do_GET(self) -> None:
        self._say({"data": [{"id": "the-model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            if self.path == "/collective_rpc":
                self.sampler.collective_rpc(**body)
                self._say(None)
            elif self.path == "/reset_prefix_cache":
                self.sampler.reset_prefix_cache()
                self._say(None)
            elif body.pop("model") == "the-model" and body.pop("return_token_ids"):
                tokens, told, ended = self.sampler.answer(body.pop("prompt"), body)
                choice = {"token_ids": tokens, "logprobs": {"token_logprobs": told}}
                self._say({"choices": [{**choice, "finish_reason": "stop" if ended else "length"}]})

    def _say(self, answer: Any) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"" if answer is None else json.dumps(answer).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(params=KINDS)
def engine(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: PreTrainedTokenizerFast,
    plain: LlamaForCausalLM,
) -> Iterator[Any]:
    if request.param == "server":
        handler = type("Own", (Handler,), {"sampler": Sampler(plain)})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            engine: Any = VLLMServer(tokenizer, f"http://127.0.0.1:{server.server_address[1]}")
            engine.sampler = handler.sampler  # type: ignore[attr-defined]
            yield engine
            server.shutdown()
        return
    vllm: Any = ModuleType("vllm")
    vllm.LLM, vllm.SamplingParams = lambda folder, **options: StandIn(folder, plain, **options), SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    yield VLLMGenerate(tokenizer)


@pytest.fixture
def plain(policy: LlamaForCausalLM) -> LlamaForCausalLM:
    """The policy without its hook: its weights are all that is handed over. Several tokens end a response."""
    policy.lm_head._forward_hooks.clear()
    assert policy.generation_config is not None
    policy.generation_config.eos_token_id = [1, *range(40, 80)]
    return policy


def sampler(engine: Any) -> Sampler:
    return engine.sampler if isinstance(engine, VLLMServer) else engine.llm


def test_greedy_answers_are_the_policy_s_after_each_change_of_weights(
    engine: Any, plain: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    greedy, answers = Sampling(temperature=0.0, max_new_tokens=8), set()
    for times in (1, 2, 3):
        found, expected = (one.generate(plain, PROMPTS, greedy) for one in (engine, HFGenerate(tokenizer)))
        mask = expected.response_mask
        assert torch.equal(found.response_mask, mask)
        assert torch.equal(found.response_ids[mask], expected.response_ids[mask])
        assert torch.equal(found.finished, expected.finished)
        assert found.engine_logprobs is None
        answers.add(str(found.response_ids.tolist()))
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        assert sampler(engine).loads == times
    assert len(answers) == 3
    assert sampler(engine).resets >= 2


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_the_policy_s_and_a_seed_repeats_them(
    engine: Any, plain: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, temperature: float
) -> None:
    sampling = Sampling(temperature, max_new_tokens=12)
    torch.manual_seed(1)
    found = engine.generate(plain, PROMPTS, sampling)
    torch.manual_seed(1)
    again = engine.generate(plain, PROMPTS, sampling)
    assert torch.equal(found.response_ids, again.response_ids)
    assert len(set(map(tuple, found.response_ids.tolist()))) > 6  # equal prompts have answers of their own
    mask = found.response_mask
    with torch.no_grad():
        expected = response_logprobs(plain, found, temperature)
    torch.testing.assert_close(found.engine_logprobs[mask], expected[mask], rtol=0, atol=1e-5)


def test_responses_are_padded_masked_and_say_whether_they_have_ended(
    engine: Any, plain: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    found = engine.generate(plain, PROMPTS, Sampling(max_new_tokens=12))
    assert len(set(found.lengths.tolist())) > 2
    last = found.response_ids.gather(1, found.lengths.unsqueeze(1) - 1).squeeze(1)
    ends = torch.isin(last, torch.tensor([1, *range(40, 80)]))
    assert torch.equal(found.finished, ends)
    assert (ends | (found.lengths == 12)).all()
    assert found.prompt_mask[:, -1].all()
    assert not found.prompt_mask[1, 0]
    assert (found.response_ids[~found.response_mask] == tokenizer.pad_token_id).all()


def test_adapters_are_merged(engine: Any, plain: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    models, greedy = adapted(plain), Sampling(temperature=0.0, max_new_tokens=8)
    found = engine.generate(models.policy, PROMPTS, greedy)
    expected = HFGenerate(tokenizer).generate(models.policy, PROMPTS, greedy)
    assert found.response_ids.tolist() == expected.response_ids.tolist()


def test_ppo_trains_on_what_it_samples_and_a_stale_engine_shows(
    engine: Any,
    plain: LlamaForCausalLM,
    make_module: MakeModule,
    make_trainer: MakeTrainer,
    data: PromptDataModule,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = make_module(plain, engine=engine, samples_per_prompt=2, learning_rate=0.02)
    make_trainer(recorder, max_epochs=2).fit(module, data)
    assert [curves["ppo/engine_gap"] < 1e-5 for curves in recorder.curves] == [True, True]
    assert "ppo/importance" in recorder.curves[0]
    monkeypatch.setattr(sampler(engine), "collective_rpc", lambda *_, **__: None)
    with pytest.warns(UserWarning, match="Likely its weights are stale"):
        make_trainer(recorder, max_epochs=2).fit(module, data)


class TestWeights:
    def test_a_tied_head_is_written_out(self, policy: LlamaForCausalLM, tmp_path: Path) -> None:
        found = load_file(write_weights(policy, tmp_path))
        assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
        assert found.keys() >= {name for name, _ in policy.named_parameters()}

    def test_adapters_are_added_and_left_as_they_were(self, policy: LlamaForCausalLM, tmp_path: Path) -> None:
        models = adapted(policy)
        name = "model.layers.0.self_attn.q_proj.weight"
        expected = dict(models.merged()[1])[name].clone()
        found = load_file(write_weights(models.policy, tmp_path))
        assert not any("lora" in one or "base_layer" in one for one in found)
        assert torch.equal(found[name], expected)
        assert not torch.equal(found[name], models.reference.get_parameter(name))  # type: ignore[union-attr]


class TestOwnOptions:
    def test_precision_and_length_are_the_policy_s(
        self, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast, plain: LlamaForCausalLM
    ) -> None:
        vllm: Any = ModuleType("vllm")
        vllm.LLM, vllm.SamplingParams = lambda folder, **options: StandIn(folder, plain, **options), SimpleNamespace
        monkeypatch.setitem(sys.modules, "vllm", vllm)
        engine, mixed = VLLMGenerate(tokenizer, kv_cache_memory_bytes=2**20, max_model_len=32), VLLMGenerate(tokenizer)
        engine.generate(plain, ["2?\n"], Sampling(max_new_tokens=2))
        with torch.autocast("cpu", torch.bfloat16):
            mixed.generate(plain, ["2?\n"], Sampling(max_new_tokens=2))
        assert engine.llm.options["kv_cache_memory_bytes"] == 2**20
        assert (engine.llm.options["dtype"], engine.llm.options["max_model_len"]) == ("float32", 32)
        assert (mixed.llm.options["dtype"], mixed.llm.options["max_model_len"]) == ("bfloat16", 64)
        assert engine.llm.options["logprobs_mode"] == "processed_logprobs"


class TestRefusals:
    def test_without_vllm_it_says_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        monkeypatch.setitem(sys.modules, "vllm", None)
        with pytest.raises(UsageError, match="vLLM is missing: pip install"):
            VLLMGenerate(tokenizer)

    def test_a_server_on_another_machine(self, tokenizer: PreTrainedTokenizerFast) -> None:
        with pytest.raises(UsageError, match=r"engine\.url = 'http://10\.0\.0\.1:8000'.*loopback"):
            VLLMServer(tokenizer, "http://10.0.0.1:8000")

    def test_no_server(self, tokenizer: PreTrainedTokenizerFast, plain: LlamaForCausalLM) -> None:
        with pytest.raises(UsageError, match=r"no server answers.*start it by: VLLM_SERVER_DEV_MODE=1"):
            VLLMServer(tokenizer, "http://127.0.0.1:9").generate(plain, PROMPTS, Sampling())
