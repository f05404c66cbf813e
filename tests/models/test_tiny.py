from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from ippo.data import EmbeddedOptions, Task, embedded_task
from ippo.models import TinyOptions, tiny_llama, train_tokenizer


@pytest.fixture(scope="module")
def full_tokenizer() -> PreTrainedTokenizerFast:
    task = embedded_task(EmbeddedOptions(train_size=500))
    return train_tokenizer([row["prompt"] + row["solution"] for row in task.train])


@given(text=st.text(max_size=40))
def test_any_text_comes_back(full_tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = full_tokenizer(text.replace("<", ""))["input_ids"]  # "<eos>" itself is read as the token
    assert full_tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text.replace("<", "")


@pytest.mark.parametrize("text", ["8 pens , or 7 .", " 's  n't  ", "\x00\u2028\ufeff🙂", "a\r\nb", "1234567"])
def test_text_comes_back_without_asking_for_it(full_tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert full_tokenizer.decode(full_tokenizer(text)["input_ids"]) == text
    assert full_tokenizer.batch_decode([full_tokenizer(text)["input_ids"]], skip_special_tokens=True) == [text]


def test_numbers_of_a_problem_are_one_token_wherever_they_stand(full_tokenizer: PreTrainedTokenizerFast) -> None:
    question, step = full_tokenizer("has 12 pens")["input_ids"], full_tokenizer("12+3=15")["input_ids"]
    (number,) = full_tokenizer("12")["input_ids"]
    assert number in question
    assert number == step[0]
    assert len(step) == 5


def test_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.padding_side == "left"
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    padded = tokenizer(["a", "pens and pens"], padding=True)["input_ids"]
    assert padded[0][0] == tokenizer.pad_token_id
    assert tokenizer.eos_token_id not in padded[1]  # nothing is added to a text


def test_vocabulary_is_as_large_as_asked(task: Task) -> None:
    texts = [row["prompt"] for row in task.train]
    assert len(train_tokenizer(texts, vocab_size=300)) == 300
    assert len(train_tokenizer([], vocab_size=300)) == 258  # bytes, pad, eos


def test_default_policy_has_under_a_million_parameters(full_tokenizer: PreTrainedTokenizerFast) -> None:
    policy = tiny_llama(full_tokenizer)
    assert 50_000 < sum(parameter.numel() for parameter in policy.parameters()) < 1_000_000
    assert policy.lm_head.weight is policy.model.embed_tokens.weight


def test_the_policy_has_the_shape_asked_for(tokenizer: PreTrainedTokenizerFast) -> None:
    options = TinyOptions(hidden_size=24, layers=2, heads=3, intermediate_size=40, context=50)
    config = tiny_llama(tokenizer, options).config
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (24, 2, 40)
    assert (config.num_attention_heads, config.max_position_embeddings) == (3, 50)
    assert config.vocab_size == len(tokenizer)
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
