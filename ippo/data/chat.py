"""Prompts in the form that a chat model was trained on."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from ippo.data.task import Rows, Task
from ippo.errors import UsageError, require


def in_chat(task: Task, tokenizer: PreTrainedTokenizerBase) -> Task:
    """The same task, each prompt put as a user's message into the tokenizer's chat template.

    This happens once, in front of everything: warm start, direction, rollouts and evaluation read the same prompts.

    Raises:
        UsageError: if the tokenizer has no chat template, or it raises or leaves a prompt out.
    """
    name = tokenizer.name_or_path or "this tokenizer"
    require(bool(tokenizer.chat_template), "chat", True, f"{name} has no chat template: leave --chat out")
    own = tokenizer("1")["input_ids"]  # a beginning-of-sequence token that it adds by itself must not stand there twice
    begin = tokenizer.bos_token if tokenizer.bos_token_id is not None and own[0] == tokenizer.bos_token_id else ""

    def render(rows: Rows) -> Rows:
        messages = [[{"role": "user", "content": row["prompt"]}] for row in rows]
        try:
            texts = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # whatever a template does
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            remedy = f"the chat template of {name} raises on a user's message ({said}): mend it, or leave --chat out"
            raise UsageError("chat", True, remedy) from error
        heard = len(set(texts)) == len({row["prompt"] for row in rows})
        remedy = f"the chat template of {name} makes one text of different prompts: mend it, or leave --chat out"
        require(heard, "chat", True, remedy)
        return [{**row, "prompt": str(text).removeprefix(begin)} for row, text in zip(rows, texts, strict=True)]

    return replace(
        task,
        train=render(task.train),
        gold=render(task.gold),
        validation=render(task.validation),
        test=render(task.test),
    )
