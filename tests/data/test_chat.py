from __future__ import annotations

import copy

import pytest
from transformers import PreTrainedTokenizerFast

from ippo.data import Task
from ippo.data.chat import in_chat
from ippo.errors import UsageError

TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}{% endfor %}|reply: "


@pytest.fixture
def chatty(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    copied = copy.deepcopy(tokenizer)
    copied.chat_template, copied.bos_token = TEMPLATE, "<eos>"
    return copied


@pytest.mark.parametrize("split", ["train", "gold", "validation", "test"])
def test_prompts_alone_are_put_into_the_template(task: Task, chatty: PreTrainedTokenizerFast, split: str) -> None:
    before, after = getattr(task, split), getattr(in_chat(task, chatty), split)
    for plain, row in zip(before, after, strict=True):
        assert row == {**plain, "prompt": f"<eos>user: {plain['prompt']}|reply: "}


def test_the_first_token_stands_there_once(task: Task, chatty: PreTrainedTokenizerFast) -> None:
    from tokenizers.processors import TemplateProcessing

    chatty.backend_tokenizer.post_processor = TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", chatty.eos_token_id)]
    )
    ids = chatty(in_chat(task, chatty).gold[0]["prompt"])["input_ids"]
    assert ids[0] == chatty.bos_token_id
    assert ids.count(chatty.bos_token_id) == 1


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('no system message') }}", r"raises on a user's message \(no system message\): mend it"),
        ("{{ messages[0].content.text }}", "makes one text of different prompts: mend it"),
        ("{% if %}", "raises on a user's message"),
    ],
    ids=["raises", "drops the prompt", "cannot be read"],
)
def test_a_template_that_does_not_serve_is_refused(
    task: Task, tokenizer: PreTrainedTokenizerFast, template: str, said: str
) -> None:
    broken = copy.deepcopy(tokenizer)
    broken.chat_template = template
    with pytest.raises(UsageError, match=f"chat = True: the chat template of .* {said}"):
        in_chat(task, broken)


def test_refuses_a_tokenizer_without_one(task: Task, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UsageError, match=r"chat = True: .* has no chat template: leave --chat out"):
        in_chat(task, tokenizer)
