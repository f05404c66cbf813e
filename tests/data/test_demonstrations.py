from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from ippo.data import Task
from ippo.data.demonstrations import encode_demonstrations, require_fit
from ippo.errors import UsageError
from ippo.rollout.sequences import Sequences


def test_real_tokens_spell_prompt_and_solution(task: Task, tokenizer: PreTrainedTokenizerFast, gold: Sequences) -> None:
    assert len(gold) == len(task.gold)
    for row, prompt, prompt_mask, response, mask in zip(
        task.gold, gold.prompt_ids, gold.prompt_mask, gold.response_ids, gold.response_mask, strict=True
    ):
        assert tokenizer.decode(prompt[prompt_mask]) == row["prompt"]
        assert tokenizer.decode(response[mask]) == row["solution"] + tokenizer.eos_token


def test_padding_lies_left_of_prompts_and_right_of_solutions(
    tokenizer: PreTrainedTokenizerFast, gold: Sequences
) -> None:
    assert gold.prompt_mask.any(0).all()
    assert gold.response_mask.any(0).all()
    assert not gold.prompt_mask.all()
    assert not gold.response_mask.all()
    assert (gold.prompt_mask.int().diff(dim=1) >= 0).all()
    assert (gold.response_mask.int().diff(dim=1) <= 0).all()
    assert (gold.prompt_ids[~gold.prompt_mask] == tokenizer.pad_token_id).all()
    assert (gold.response_ids[~gold.response_mask] == tokenizer.pad_token_id).all()


def test_solutions_get_no_special_token_in_front(tokenizer: PreTrainedTokenizerFast) -> None:
    one = encode_demonstrations(tokenizer, [{"prompt": "2+2?\n", "solution": "2+2=4\n#### 4"}], 64, "task.gold")
    expected = [*tokenizer("2+2=4\n#### 4", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert one.response_ids.tolist() == [expected]


def test_the_end_that_is_asked_for_closes_them(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": "2+2?", "solution": "4"}, {"prompt": "2+3?", "solution": "5 it is"}]
    found = encode_demonstrations(tokenizer, rows, 64, "task.gold", end=7)
    assert [ids[mask][-1].item() for ids, mask in zip(found.response_ids, found.response_mask, strict=True)] == [7, 7]


def test_no_limit_is_no_error(tokenizer: PreTrainedTokenizerFast, task: Task) -> None:
    long = [{"prompt": "How many?", "solution": "1+1=2\n" * 900}]
    assert encode_demonstrations(tokenizer, long, None, "task.gold").response_ids.shape[1] > 900
    require_fit(tokenizer, task, None, max_new_tokens=10**6)


@pytest.mark.parametrize("split", ["train", "gold", "validation", "test"])
def test_refuses_a_prompt_without_a_token(tokenizer: PreTrainedTokenizerFast, task: Task, split: str) -> None:
    rows = list(getattr(task, split))
    rows[1] = {**rows[1], "prompt": ""}
    changed: dict[str, Any] = {split: rows}
    with pytest.raises(UsageError, match=rf"task\.{split}\[1\] = '': it has no token.*: remove it"):
        require_fit(tokenizer, dataclasses.replace(task, **changed), None, max_new_tokens=8)


def test_refuses_a_row_longer_than_the_context_by_name(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": "2+2?", "solution": "4"}, {"prompt": "How many?", "solution": "1+1=2\n" * 9}]
    length = len(tokenizer(rows[1]["prompt"] + rows[1]["solution"])["input_ids"]) + 1
    assert len(encode_demonstrations(tokenizer, rows, length, "task.gold")) == 2
    with pytest.raises(UsageError, match=rf"task\.gold\[1\] = 'How many\?': .* {length} tokens .* is {length - 1}"):
        encode_demonstrations(tokenizer, rows, length - 1, "task.gold")


def test_refuses_no_rows(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UsageError, match=r"task\.gold = 0: give at least one row"):
        encode_demonstrations(tokenizer, [], 64, "task.gold")
