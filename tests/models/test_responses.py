from __future__ import annotations

import copy
import dataclasses
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from parts import SHAPE
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    Gemma2Config,
    GPT2Config,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
)

from ippo import Episodes
from ippo.functional import token_entropy
from ippo.influence import ExactScorer
from ippo.models import LoraOptions, ModelOptions, build_models, response_logits, response_logprobs
from ippo.models.adapters import with_adapter
from ippo.models.responses import logits_at_a_time, response_logprobs_and_entropy
from ippo.rollout.sequences import Sequences


@torch.no_grad()
def alone(policy: LlamaForCausalLM, sequences: Sequences, row: int, temperature: float = 1.0) -> Tensor:
    """[length] log-probabilities from a plain forward of one row without any padding."""
    prompt = sequences.prompt_ids[row][sequences.prompt_mask[row]]
    response = sequences.response_ids[row][sequences.response_mask[row]]
    logits = policy(torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1)[range(len(response)), response]


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_logprobs_are_those_of_each_row_alone(policy: LlamaForCausalLM, rollout: Episodes, temperature: float) -> None:
    assert not rollout.prompt_mask.all()
    with torch.no_grad():
        logprobs = response_logprobs(policy, rollout, temperature)
    assert logprobs.shape == rollout.response_ids.shape
    for row, mask in enumerate(rollout.response_mask):
        torch.testing.assert_close(logprobs[row][mask], alone(policy, rollout, row, temperature), rtol=0, atol=1e-5)


def test_what_lies_under_the_padding_does_not_matter(policy: LlamaForCausalLM, rollout: Episodes) -> None:
    other = dataclasses.replace(
        rollout,
        prompt_ids=rollout.prompt_ids.where(rollout.prompt_mask, 7),
        response_ids=rollout.response_ids.where(rollout.response_mask, 9),
    )
    with torch.no_grad():
        first, second = response_logprobs(policy, rollout), response_logprobs(policy, other)
    torch.testing.assert_close(first[rollout.response_mask], second[rollout.response_mask], rtol=0, atol=1e-6)


def test_neighbours_and_trimming_do_not_matter(policy: LlamaForCausalLM, rollout: Episodes) -> None:
    with torch.no_grad():
        whole = response_logprobs(policy, rollout)
        for start, chunk in zip((0, 3, 6, 9, 12, 15), rollout.chunks(3), strict=True):
            part = response_logprobs(policy, chunk)
            expected = whole[start : start + 3, : part.shape[1]]
            torch.testing.assert_close(part[chunk.response_mask], expected[chunk.response_mask], rtol=0, atol=1e-5)


def test_logits_are_the_tail_of_the_full_ones(policy: LlamaForCausalLM, gold: Sequences) -> None:
    with torch.no_grad():
        logits = response_logits(policy, gold)
        full = policy(gold.input_ids, attention_mask=gold.attention_mask, position_ids=gold.position_ids).logits
    start = gold.prompt_ids.shape[1] - 1
    assert logits.shape == (*gold.response_ids.shape, policy.config.vocab_size)
    torch.testing.assert_close(logits, full[:, start:-1])


FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SHAPE),
    "phi3": Phi3Config(**SHAPE),
    "gemma2": Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=2.0),
    "gpt2": GPT2Config(vocab_size=330, n_embd=16, n_layer=2, n_head=2),
    "opt": OPTConfig(
        vocab_size=330, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=8
    ),
    "bart": BartConfig(
        vocab_size=330, d_model=16, decoder_ffn_dim=24, decoder_layers=2, decoder_attention_heads=2, dropout=0.0
    ),
    "llama4": Llama4TextConfig(**SHAPE, intermediate_size_mlp=24, num_local_experts=2, head_dim=8),
}


class TestInParts:
    """Where logits are many they are worked out a few tokens at a time, and nothing else is to be seen of it."""

    @pytest.fixture(params=FAMILIES)
    def model(self, request: pytest.FixtureRequest) -> Any:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(FAMILIES[request.param]).eval()
        for parameter in model.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.3)
        return model

    @pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
    def test_gradients_and_scores_are_the_same(
        self, model: Any, lora: bool, rollout: Episodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if lora:
            model = with_adapter(model, LoraOptions(rank=2))
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.3)
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        direction = {name: torch.randn_like(model.get_parameter(name)) for name in names}

        def losses(model: Any, episodes: Episodes) -> Tensor:
            return (response_logprobs(model, episodes, 0.7) * episodes.response_mask).sum(1)

        found = []
        for size in (2**24, 16 * 330 * 5):  # all at once; five tokens of each of the sixteen episodes
            monkeypatch.setattr("ippo.models.responses.LOGITS_AT_A_TIME", size)
            weights = [model.get_parameter(name) for name in names]  # an expert that no token chose has no gradient
            gradients = torch.autograd.grad(losses(model, rollout).sum(), weights, materialize_grads=True)
            scores = {way: ExactScorer(way).score(model, losses, [rollout], direction) for way in ("auto", "jvp")}  # type: ignore[arg-type]
            found.append({**dict(zip(names, gradients, strict=True)), **scores})
        for name, whole in found[0].items():
            torch.testing.assert_close(found[1][name], whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))

    def test_a_head_that_needs_more_than_the_trunks_states_keeps_all_its_logits(
        self, policy: LlamaForCausalLM, rollout: Episodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class ByPosition(torch.nn.Linear):
            """Scales its logits by how far back they are, as no part of them can know."""

            def forward(self, states: Tensor) -> Tensor:
                return super().forward(states) * torch.arange(1, states.shape[1] + 1).flip(0).view(1, -1, 1)

        policy.lm_head.__class__ = ByPosition
        whole = response_logprobs(policy, rollout)
        monkeypatch.setattr("ippo.models.responses.LOGITS_AT_A_TIME", 1)
        with pytest.warns(UserWarning, match=r"logits of a whole micro-batch are held .* ppo\.micro_batch_tokens"):
            assert torch.equal(response_logprobs(policy, rollout), whole)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # said once
            response_logprobs(policy, rollout)

    def test_entropy_comes_along(
        self, policy: LlamaForCausalLM, rollout: Episodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with torch.no_grad():
            logprobs = response_logprobs(policy, rollout, 0.7)
            entropy = token_entropy(response_logits(policy, rollout), 0.7)
            monkeypatch.setattr("ippo.models.responses.LOGITS_AT_A_TIME", 10_000)
            parts = response_logprobs_and_entropy(policy, rollout, 0.7)
        torch.testing.assert_close(parts[0], logprobs)
        torch.testing.assert_close(parts[1], entropy)

    def test_no_tensor_holds_all_logits_forward_or_backward(
        self, policy: LlamaForCausalLM, rollout: Episodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        n, t = rollout.response_ids.shape
        size = n * policy.config.vocab_size * 4
        monkeypatch.setattr("ippo.models.responses.LOGITS_AT_A_TIME", size)
        largest = 0

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
                nonlocal largest
                result = func(*args, **(kwargs or {}))
                if isinstance(result, Tensor) and result.dim() and result.shape[-1] == policy.config.vocab_size:
                    largest = max(largest, result.numel())
                return result

        with Watch():
            response_logprobs(policy, rollout, 0.7).sum().backward()
        assert t > 8
        assert largest == size

    def test_a_card_has_larger_pieces_of_one_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for gib, numbers in ((80, 80 * 2**30 // 512), (4, 2**24)):
            card = SimpleNamespace(total_memory=gib * 2**30)
            monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, card=card: card)
            assert logits_at_a_time(torch.device("cuda")) == numbers
        assert logits_at_a_time(torch.device("cpu")) == 2**24
        assert logits_at_a_time(torch.device("cuda"), asked=7) == 7

    def test_the_option_holds_in_every_layout(self, policy: LlamaForCausalLM, rollout: Episodes) -> None:
        n, t = rollout.response_ids.shape
        plain = response_logprobs(policy, rollout)
        for layout in ("separate", "shared", "lora"):
            options = ModelOptions(logits_at_a_time=n * policy.config.vocab_size * 4)
            models = build_models(layout, copy.deepcopy(policy), options)  # type: ignore[arg-type]
            pieces: list[int] = []
            models.policy.lm_head.register_forward_hook(lambda *a, found=pieces: found.append(a[2].shape[1]))
            torch.testing.assert_close(response_logprobs(models.policy, rollout), plain, rtol=0, atol=1e-5)
            assert max(pieces[-(t // 4) :]) == 4

    def test_the_trunk_is_its_own_again(
        self, policy: LlamaForCausalLM, rollout: Episodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ippo.models.responses.LOGITS_AT_A_TIME", 1)
        response_logprobs(policy, rollout).sum().backward()
        assert "forward" not in vars(policy.base_model)
