"""Gold solutions as token sequences, for the warm start and for the direction of I-PPO."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from ippo.data.task import Rows, Task
from ippo.errors import require
from ippo.rollout.prompts import encode_prompts
from ippo.rollout.sequences import Sequences, pad_left


def encode_demonstrations(
    tokenizer: PreTrainedTokenizerBase, rows: Rows, context: int | None, name: str, end: int | None = None
) -> Sequences:
    """Tokenise each row's prompt and solution, the latter closed by an end token.

    Args:
        tokenizer: the policy's tokenizer.
        rows: rows with ``prompt`` and ``solution``.
        context: the longest sequence that the policy takes, in tokens; None if nothing limits it.
        name: what to call these rows in an error.
        end: the token that closes a solution (:func:`ippo.rollout.end_tokens.end_tokens`); the tokenizer's own by
            default.

    Raises:
        UsageError: if there is no row, a prompt has no token, or a row is longer than the context (nothing is ever cut
            silently).
    """
    require(len(rows) > 0, name, len(rows), "give at least one row with a gold solution")
    prompts = encode_prompts(tokenizer, [row["prompt"] for row in rows], name)
    solutions = tokenizer([row["solution"] for row in rows], add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id if end is None else end
    responses = [[*ids, end] for ids in solutions]
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    longest = max(range(len(rows)), key=lengths.__getitem__)
    found = f"prompt and solution take {lengths[longest]} tokens but the policy's context is {context}"
    prompt = rows[longest]["prompt"][:80]
    require(
        context is None or lengths[longest] <= context,
        f"{name}[{longest}]",
        prompt,
        f"{found}: shorten or remove the row",
    )
    pad = tokenizer.pad_token_id
    prompt_ids, prompt_mask = pad_left(prompts, pad)
    response_ids, response_mask = (side.flip(1) for side in pad_left([ids[::-1] for ids in responses], pad))
    return Sequences(prompt_ids, prompt_mask, response_ids, response_mask)


def fitting(
    tokenizer: PreTrainedTokenizerBase, task: Task, context: int, max_new_tokens: int
) -> tuple[Task, dict[str, int]]:
    """The task without the rows that the policy's context cannot hold, and how many each split has lost.

    A row goes if its prompt leaves no room for the response, and in the splits that are learned from also if prompt and
    solution are too long.

    Raises:
        UsageError: if nothing is left of a split.
    """
    kept: dict[str, Any] = {}
    for split in ("train", "gold", "validation", "test"):
        rows: Rows = getattr(task, split)
        lengths = [len(ids) for ids in tokenizer([row["prompt"] for row in rows])["input_ids"]]
        fits = [length <= context - max_new_tokens for length in lengths]
        if split in ("train", "gold"):
            solutions = tokenizer([row["solution"] for row in rows], add_special_tokens=False)["input_ids"]
            whole = [length + len(ids) + 1 <= context for length, ids in zip(lengths, solutions, strict=True)]
            fits = [both and one for both, one in zip(whole, fits, strict=True)]
        kept[split] = [row for row, stays in zip(rows, fits, strict=True) if stays]
    lost = {split: len(getattr(task, split)) - len(rows) for split, rows in kept.items()}
    return replace(task, **kept), {split: count for split, count in lost.items() if count}


def require_fit(tokenizer: PreTrainedTokenizerBase, task: Task, context: int | None, max_new_tokens: int) -> None:
    """Make sure, before any work, that every prompt has tokens, and that the policy's context holds every gold solution
    and every prompt's response.

    Raises:
        UsageError: naming the split, the row and what to do. A question is never cut.
    """
    encode_demonstrations(tokenizer, task.gold, context, "task.gold")
    for split in ("train", "validation", "test"):
        prompts = [row["prompt"] for row in getattr(task, split)]
        lengths = [len(ids) for ids in encode_prompts(tokenizer, prompts, f"task.{split}")]
        if context is None:
            continue
        room = context - max_new_tokens
        longest = max(range(len(prompts)), key=lengths.__getitem__)
        found = f"it has {lengths[longest]} tokens, and max_new_tokens leaves {room} of the context of {context}"
        remedy = f"{found}: remove it or lower sampling.max_new_tokens, or use --splits.too_long drop"
        require(lengths[longest] <= room, f"task.{split}[{longest}]", prompts[longest][:80], remedy)
