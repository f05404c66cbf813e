from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from parts import state
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ippo.data import Task
from ippo.errors import UsageError
from ippo.models import LoraOptions, TinyOptions, tiny_llama, train_tokenizer
from ippo.recipes.warm_start import default_cache, fingerprint, warm_start
from ippo.sft import SFTOptions

OPTIONS = SFTOptions(steps=3, batch_size=4, learning_rate=1e-2)
SHAPE = TinyOptions(hidden_size=16, layers=1, heads=2, intermediate_size=32, context=64)


@pytest.fixture
def policy(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return tiny_llama(tokenizer, SHAPE)


class TestWarmStart:
    def fit(self, policy: Any, tokenizer: Any, task: Task, cache: Path, **options: Any) -> tuple[Any, bool]:
        chosen = dataclasses.replace(OPTIONS, **options)
        return warm_start(copy.deepcopy(policy), tokenizer, task.train, chosen, 0, "cpu", progress=False, cache=cache)

    def test_trains_once_and_finds_the_same_again(
        self, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, task: Task, tmp_path: Path
    ) -> None:
        trained, cached = self.fit(policy, tokenizer, task, tmp_path)
        found, again = self.fit(policy, tokenizer, task, tmp_path)
        assert (cached, again) == (False, True)
        before, after, loaded = state(policy), state(trained), state(found)
        assert not torch.equal(before["model.norm.weight"], after["model.norm.weight"])
        assert all(torch.equal(value, loaded[name]) for name, value in after.items())
        assert found.lm_head.weight is found.model.embed_tokens.weight
        assert found.config.max_position_embeddings == 64

    def test_in_mixed_precision_the_weights_stay_whole(
        self, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, task: Task, tmp_path: Path
    ) -> None:
        plain, _ = self.fit(policy, tokenizer, task, tmp_path)
        given = copy.deepcopy(policy)
        mixed, cached = warm_start(
            given, tokenizer, task.train, OPTIONS, 0, "cpu", progress=False, cache=tmp_path, mixed=True
        )
        assert not cached  # it is kept apart from the plain one
        assert {value.dtype for value in state(mixed).values()} == {torch.float32}
        ours, theirs = state(plain)["model.norm.weight"], state(mixed)["model.norm.weight"]
        assert not torch.equal(ours, theirs)
        assert torch.allclose(ours, theirs, atol=1e-2)

    def test_does_not_hang_on_the_state_of_the_generators(
        self, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, task: Task, tmp_path: Path
    ) -> None:
        ends = []
        for seed in range(2):
            torch.manual_seed(seed)
            ends.append(state(self.fit(policy, tokenizer, task, tmp_path / str(seed))[0]))
        assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())

    def test_no_steps_leave_the_policy_as_it_is(
        self, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, task: Task, tmp_path: Path
    ) -> None:
        given = copy.deepcopy(policy)
        nothing = dataclasses.replace(OPTIONS, steps=0)
        found, cached = warm_start(given, tokenizer, task.train, nothing, 0, "cpu", cache=tmp_path)
        assert found is given
        assert not cached
        assert list(tmp_path.iterdir()) == []

    def test_leaves_a_plain_model_directory_and_nothing_unfinished(
        self, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, task: Task, tmp_path: Path
    ) -> None:
        self.fit(policy, tokenizer, task, tmp_path)
        (folder,) = (tmp_path / "warm-starts").iterdir()
        assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}

    def test_refuses_demonstrations_longer_than_the_context(
        self, tokenizer: PreTrainedTokenizerFast, task: Task, tmp_path: Path
    ) -> None:
        short = tiny_llama(tokenizer, dataclasses.replace(SHAPE, context=16))
        with pytest.raises(UsageError, match=r"task\.train\[\d+\] = .* context is 16"):
            self.fit(short, tokenizer, task, tmp_path)

    def test_an_adapter_is_trained_merged_and_all_that_is_kept(
        self, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, task: Task, tmp_path: Path
    ) -> None:
        results = []
        for _ in range(2):
            given = copy.deepcopy(policy)
            lora = LoraOptions(rank=2)
            found = warm_start(given, tokenizer, task.train, OPTIONS, 0, "cpu", False, False, tmp_path, lora)
            assert found[0] is given
            assert found[0].state_dict().keys() == policy.state_dict().keys()
            results.append(found)
        (trained, cached), (loaded, again) = results
        assert (cached, again) == (False, True)
        before, after = state(policy), state(trained)
        assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])
        assert torch.equal(before["model.norm.weight"], after["model.norm.weight"])
        assert all(torch.equal(value, after[name]) for name, value in state(loaded).items())
        (folder,) = (tmp_path / "warm-starts").iterdir()
        assert "adapter_model.safetensors" in {path.name for path in folder.iterdir()}
        assert not list(folder.glob("model*"))


class TestFingerprint:
    def test_is_the_same_for_the_same(
        self, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, task: Task
    ) -> None:
        first = fingerprint(policy, tokenizer, task.train, OPTIONS, 0)
        assert fingerprint(copy.deepcopy(policy), tokenizer, list(task.train), SFTOptions(3, 4, 1e-2), 0) == first

    def test_tells_all_that_matters(
        self, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, task: Task
    ) -> None:
        nudged = copy.deepcopy(policy)
        nudged.model.norm.weight.data[0] += 1e-6
        other_tokenizer = train_tokenizer([row["solution"] for row in task.train], vocab_size=320)
        other_end, two_ends = copy.deepcopy(tokenizer), copy.deepcopy(policy)
        other_end.eos_token = "#"
        two_ends.generation_config.eos_token_id = [1, 7]  # type: ignore[union-attr]
        solution = [{**task.train[0], "solution": "#### 1"}, *task.train[1:]]
        found = [
            fingerprint(policy, tokenizer, task.train, OPTIONS, 0),
            fingerprint(nudged, tokenizer, task.train, OPTIONS, 0),
            fingerprint(policy, other_end, task.train, OPTIONS, 0),
            fingerprint(two_ends, tokenizer, task.train, OPTIONS, 0),
            fingerprint(policy, other_tokenizer, task.train, OPTIONS, 0),
            fingerprint(policy, tokenizer, task.train[:-1], OPTIONS, 0),
            fingerprint(policy, tokenizer, solution, OPTIONS, 0),
            fingerprint(policy, tokenizer, task.train, dataclasses.replace(OPTIONS, steps=4), 0),
            fingerprint(policy, tokenizer, task.train, OPTIONS, 1),
            fingerprint(policy, tokenizer, task.train, OPTIONS, 0, LoraOptions(rank=2)),
            fingerprint(policy, tokenizer, task.train, OPTIONS, 0, mixed=True),
        ]
        assert len(set(found)) == len(found)

    @pytest.mark.parametrize("option", [{"heads": 4}, {"context": 128}])
    def test_tells_shapes_that_have_the_same_weights(
        self, tokenizer: PreTrainedTokenizerFast, task: Task, option: dict[str, int]
    ) -> None:
        policies = []
        for shape in (SHAPE, dataclasses.replace(SHAPE, **option)):
            torch.manual_seed(0)
            policies.append(tiny_llama(tokenizer, shape))
        weights = [policy.state_dict() for policy in policies]
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
        first, second = (fingerprint(policy, tokenizer, task.train, OPTIONS, 0) for policy in policies)
        assert first != second


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IPPO_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("IPPO_CACHE")
    assert default_cache() == Path.home() / ".cache" / "ippo"
