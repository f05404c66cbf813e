"""Prompts in the form that a chat model was trained on."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from ippo.data.task import Rows, Task
from ippo.errors import require


def in_chat(task: Task, tokenizer: PreTrainedTokenizerBase) -> Task:
    """The same task, each prompt put as a user's message into the tokenizer's chat template.

    This happens once, in front of everything: warm start, direction, rollouts and evaluation read the same prompts.

    Raises:
        UsageError: if the tokenizer has no chat template.
    """
    remedy = f"{tokenizer.name_or_path or 'this tokenizer'} has no chat template: leave --chat out"
    require(bool(tokenizer.chat_template), "chat", True, remedy)
    own = tokenizer("1")["input_ids"]  # a beginning-of-sequence token that it adds by itself must not stand there twice
    begin = tokenizer.bos_token if tokenizer.bos_token_id is not None and own[0] == tokenizer.bos_token_id else ""

    def render(rows: Rows) -> Rows:
        messages = [[{"role": "user", "content": row["prompt"]}] for row in rows]
        texts = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return [{**row, "prompt": str(text).removeprefix(begin)} for row, text in zip(rows, texts, strict=True)]

    return replace(
        task,
        train=render(task.train),
        gold=render(task.gold),
        validation=render(task.validation),
        test=render(task.test),
    )
