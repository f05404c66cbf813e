from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parts import state
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ippo.errors import UsageError
from ippo.models import TinyOptions
from ippo.models.loading import load_policy

TEXTS = ["Ava has 8 pens"]


def test_tiny_is_made_of_the_texts() -> None:
    policy, tokenizer = load_policy("tiny", TEXTS, TinyOptions(hidden_size=16, layers=1, heads=2))
    assert policy.config.hidden_size == 16
    assert tokenizer.decode(tokenizer(TEXTS[0])["input_ids"]) == TEXTS[0]


def test_a_directory_gives_what_was_saved_in_it(
    tmp_path: Path, shared_policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    shared_policy.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy, loaded = load_policy(str(tmp_path), TEXTS)
    saved = state(shared_policy)
    assert all(torch.equal(value, saved[name]) for name, value in state(policy).items())
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.padding_side == "left"


def test_a_tokenizer_without_pad_pads_with_eos(
    tmp_path: Path, shared_policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    shared_policy.save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>").save_pretrained(tmp_path)
    _, loaded = load_policy(str(tmp_path), TEXTS)
    assert loaded.pad_token_id == loaded.eos_token_id == tokenizer.eos_token_id


def test_refuses_a_tokenizer_without_eos(
    tmp_path: Path, shared_policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    shared_policy.save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="its tokenizer has no eos token"):
        load_policy(str(tmp_path), TEXTS)


def test_refuses_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"policy = '.*/nowhere': there is no such directory"):
        load_policy(str(tmp_path / "nowhere"), TEXTS)


def test_refuses_a_directory_without_a_model_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="it cannot be loaded: Unrecognized model") as error:
        load_policy(str(tmp_path), TEXTS)
    assert "\n" not in str(error.value)
