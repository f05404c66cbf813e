"""The vLLM engines with a real vLLM, in the virtual environment of ``make test-vllm``; elsewhere they are left out."""

from __future__ import annotations

import copy
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ippo.errors import UsageError
from ippo.models import LoraModels, LoraOptions, TinyOptions, response_logprobs, tiny_llama
from ippo.rollout.engines.hf import HFGenerate
from ippo.rollout.engines.vllm import VLLMGenerate
from ippo.rollout.engines.vllm_server import VLLMServer
from ippo.rollout.sampling import Sampling
from ippo.rollout.weights_file import write_model

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

PROMPTS = ["Ava has 8 pens", "How many now?", "7", "Ben has 12 books, buys 3, loses 4. How many now?\n"]
GREEDY = Sampling(temperature=0.0, max_new_tokens=16)
ENDS = [1, *range(40, 60)]


@pytest.fixture(scope="module")
def first(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Heads of 32, the smallest that vLLM's attention takes on a CPU; several tokens end a response."""
    torch.manual_seed(0)
    policy = tiny_llama(tokenizer, TinyOptions(hidden_size=64, layers=2, heads=2, intermediate_size=96, context=128))
    for parameter in policy.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.15)
    assert policy.generation_config is not None
    policy.generation_config.eos_token_id = ENDS
    return policy.eval()


@pytest.fixture
def policy(first: LlamaForCausalLM) -> LlamaForCausalLM:
    return copy.deepcopy(first)


@pytest.fixture(scope="module", params=["in this process", "server"])
def engine(
    request: pytest.FixtureRequest,
    tokenizer: PreTrainedTokenizerFast,
    first: LlamaForCausalLM,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    if request.param == "in this process":
        yield VLLMGenerate(tokenizer, kv_cache_memory_bytes=2**26, enforce_eager=True)
        return
    folder = tmp_path_factory.mktemp("model")
    write_model(first, tokenizer, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--model", str(folder), "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    words += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm", "--enforce-eager"]
    words += ["--kv-cache-memory-bytes", str(2**26)]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words]
    log = (tmp_path_factory.mktemp("log") / "server.log").open("w")
    server = subprocess.Popen(command, env={**os.environ, "VLLM_SERVER_DEV_MODE": "1"}, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server, Path(log.name))
        yield VLLMServer(tokenizer, f"http://127.0.0.1:{port}")
    finally:
        server.terminate()
        server.wait(60)


def wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(address, timeout=2)
            return
        except OSError:
            assert server.poll() is None, log.read_text()[-3000:]
            time.sleep(2)
    raise AssertionError(log.read_text()[-3000:])


def same(found: Any, expected: Any) -> None:
    mask = expected.response_mask
    assert torch.equal(found.response_mask, mask)
    assert torch.equal(found.response_ids[mask], expected.response_ids[mask])
    assert torch.equal(found.finished, expected.finished)


def test_greedy_answers_token_by_token_after_each_change_of_weights(
    engine: Any, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    answers = set()
    for _ in range(3):
        found = engine.generate(policy, PROMPTS, GREEDY)
        same(found, HFGenerate(tokenizer).generate(policy, PROMPTS, GREEDY))
        answers.add(str(found.response_ids.tolist()))
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    assert len(answers) == 3


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_seeds_and_ends(
    engine: Any, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, temperature: float
) -> None:
    sampling = Sampling(temperature, max_new_tokens=12)
    torch.manual_seed(3)
    found = engine.generate(policy, PROMPTS * 4, sampling)
    torch.manual_seed(3)
    again = engine.generate(policy, PROMPTS, sampling)  # the same seeds beside fewer others
    rows = found.rows(torch.arange(4)).trim()
    assert torch.equal(rows.response_ids, again.response_ids)
    assert len(set(map(tuple, found.response_ids.tolist()))) > 8

    mask = found.response_mask
    with torch.no_grad():
        expected = response_logprobs(policy, found, temperature)
    torch.testing.assert_close(found.engine_logprobs[mask], expected[mask], rtol=0, atol=1e-5)

    last = found.response_ids.gather(1, found.lengths.unsqueeze(1) - 1).squeeze(1)
    assert torch.equal(found.finished, torch.isin(last, torch.tensor(ENDS)))
    assert found.finished.any()
    assert not found.finished.all()


def test_adapters_are_merged(engine: Any, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    models = LoraModels(policy, LoraOptions(rank=2, alpha=4.0)).eval()
    torch.manual_seed(1)
    for _ in range(2):
        with torch.no_grad():
            for parameter in models.policy.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.1)
        found = engine.generate(models.policy, PROMPTS, GREEDY)
        same(found, HFGenerate(tokenizer).generate(models.policy, PROMPTS, GREEDY))


def test_two_ranks_train_as_one(
    engine: Any, first: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Each rank samples its own prompts from the weights of just now, and both end with the same."""
    model, script = tmp_path / "model", Path(__file__).parent / "two_vllm_ranks.py"
    model.mkdir()
    write_model(first, tokenizer, model)
    where = [engine.url] if isinstance(engine, VLLMServer) else []
    command = [sys.executable, str(script), str(model), str(tmp_path), *where]
    own = {name: value for name, value in os.environ.items() if "RANK" not in name and "MASTER" not in name}
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for found in ranks:
        assert found["ranks"] == 2
        assert len(found["gaps"]) == 3
        assert max(found["gaps"]) < 1e-5
        assert [curves["ppo/engine_gap"] for curves in found["curves"]] == pytest.approx([0] * 3, abs=1e-5)
    for mine, others in zip(*(found["prompts"] for found in ranks), strict=True):
        assert mine
        assert not set(mine) & set(others)
    start = first.state_dict()
    for name, weight in ranks[0]["weights"].items():
        assert torch.equal(weight, ranks[1]["weights"][name])
        own_name = name.removeprefix("policy.")
        assert own_name not in start or not torch.equal(weight, start[own_name])


def test_the_generator_of_torch_is_left_alone(
    engine: Any, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    torch.manual_seed(5)
    engine.generate(policy, PROMPTS, GREEDY)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    torch.randint(2**31, (len(PROMPTS),))  # a seed a request, and no more
    assert torch.equal(torch.rand(3), drawn)


def test_a_server_that_is_not_in_development_mode_is_refused_with_the_command(
    engine: Any, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isinstance(engine, VLLMServer):
        pytest.skip("of the server alone")
    own = engine._post
    monkeypatch.setattr(engine, "_post", lambda path, **body: own("/no" + path, **body))
    with pytest.raises(UsageError, match="/no/collective_rpc answers 404"):
        engine.generate(policy, PROMPTS, GREEDY)
