from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from parts import state
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from ippo.errors import UsageError
from ippo.models import LayoutName, LoraOptions, build_models, export
from ippo.models.loading import load_policy

LAYOUTS = ["separate", "shared", "lora"]
MORE = 12


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def directory(
    tmp_path: Path, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, request: pytest.FixtureRequest
) -> Path:
    """A model with more embeddings than its tokenizer has tokens, a chat template, and two ends."""
    config = copy.deepcopy(policy.config)
    config.tie_word_embeddings, config.vocab_size = request.param, len(tokenizer) + MORE
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=[tokenizer.eos_token_id, 7], do_sample=True, top_k=5)
    model.save_pretrained(tmp_path / "origin")
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = "{% for one in messages %}{{ one.content }}<eos>{% endfor %}"
    chatty.save_pretrained(tmp_path / "origin")
    return tmp_path / "origin"


def trained(directory: Path, layout: LayoutName) -> tuple[Any, Any]:
    """The models made of a directory, their policy moved."""
    policy, tokenizer = load_policy(str(directory), ["7"])
    models = build_models(layout, policy, lora=LoraOptions(rank=2))
    torch.manual_seed(1)
    for parameter in models.parameter_groups()["policy"]:
        parameter.data += 0.05 * torch.randn_like(parameter)
    return models, tokenizer


@pytest.mark.parametrize("layout", LAYOUTS)
def test_loads_over_the_model_it_was_made_from(directory: Path, layout: LayoutName, tmp_path: Path) -> None:
    models, tokenizer = trained(directory, layout)
    before = state(models)
    export(models, tokenizer, tmp_path / "out")
    assert all(torch.equal(value, before[name]) for name, value in state(models).items())
    origin, found = (AutoModelForCausalLM.from_pretrained(place) for place in (directory, tmp_path / "out"))
    assert found.config.vocab_size == origin.config.vocab_size == len(tokenizer) + MORE
    origin.load_state_dict(found.state_dict(), strict=True)
    ids = torch.tensor([[5, 9, 12, 40]])
    with torch.no_grad():
        ours, theirs = models.policy(ids).logits, found(ids).logits
    torch.testing.assert_close(theirs[..., : len(tokenizer)], ours, rtol=1e-5, atol=1e-5)
    first = AutoModelForCausalLM.from_pretrained(directory)
    for name in ("get_input_embeddings", "get_output_embeddings"):  # what was not trained is as it came in
        came, went = (getattr(model, name)().weight[len(tokenizer) :] for model in (first, found))
        assert torch.equal(came, went), name
    assert models.policy.config.vocab_size == len(tokenizer)


def test_it_ends_where_training_ended_and_speaks_by_the_same_template(directory: Path, tmp_path: Path) -> None:
    models, tokenizer = trained(directory, "separate")
    export(models, tokenizer, tmp_path / "out")
    config = GenerationConfig.from_pretrained(tmp_path / "out")
    assert config.eos_token_id == [tokenizer.eos_token_id, 7]
    assert config.pad_token_id == tokenizer.pad_token_id
    assert config.top_k == 5  # what else the model had
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("own", [{"temperature": 0.5}, {"top_p": 2.0}], ids=["without do_sample", "out of range"])
def test_settings_that_cannot_be_saved_cost_no_model(
    own: dict[str, Any], policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    models = build_models("shared", policy)
    for name, value in own.items():
        setattr(models.policy.generation_config, name, value)
    export(models, tokenizer, tmp_path / "out")
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == tokenizer.eos_token_id
    assert getattr(models.policy.generation_config, *own) == next(iter(own.values()))


def test_a_half_precision_base_gets_its_adapter_in_float32(
    policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    policy.lm_head._forward_hooks.clear()
    models = build_models("lora", policy.to(torch.bfloat16), lora=LoraOptions(rank=2))
    layer = models.policy.model.layers[0].mlp.up_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    export(models, tokenizer, tmp_path / "out")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").model.layers[0].mlp.up_proj.weight
    delta = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 2.0  # alpha / rank is 32 / 2 by default
    scale = layer.scaling["default"] / 2.0
    expected = (layer.base_layer.weight.float() + scale * delta).to(torch.bfloat16)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.01, atol=1e-3)


def test_nothing_is_overwritten_or_left_half(
    policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = build_models("shared", policy)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").touch()
    with pytest.raises(UsageError, match=r"output = '.*taken': there is something already: name another"):
        export(models, tokenizer, tmp_path / "taken")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(type(tokenizer), "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        export(models, tokenizer, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"taken"}
