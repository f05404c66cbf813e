"""Gold solutions as token sequences, for the warm start and for the direction of I-PPO."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from ippo.data.task import Rows
from ippo.errors import require
from ippo.sequences import Sequences


def encode_demonstrations(tokenizer: PreTrainedTokenizerBase, rows: Rows, context: int, split: str) -> Sequences:
    """Tokenise each row's prompt and solution, the latter closed by the end-of-sequence token.

    Args:
        tokenizer: the policy's tokenizer.
        rows: rows with ``prompt`` and ``solution``.
        context: the longest sequence that the policy takes, in tokens.
        split: what to call these rows in an error.

    Raises:
        UsageError: if there is no row, or one is longer than the context (nothing is ever cut silently).
    """
    require(len(rows) > 0, f"task.{split}", len(rows), "give at least one row with a gold solution")
    prompts = tokenizer([row["prompt"] for row in rows], add_special_tokens=True)["input_ids"]
    solutions = tokenizer([row["solution"] for row in rows], add_special_tokens=False)["input_ids"]
    responses = [[*ids, tokenizer.eos_token_id] for ids in solutions]
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    longest = max(range(len(rows)), key=lengths.__getitem__)
    found = f"prompt and solution take {lengths[longest]} tokens but the policy's context is {context}"
    prompt = rows[longest]["prompt"][:80]
    require(lengths[longest] <= context, f"task.{split}[{longest}]", prompt, f"{found}: shorten or remove the row")
    pad = tokenizer.pad_token_id
    prompt_ids, prompt_mask = pad_left(prompts, pad)
    response_ids, response_mask = (side.flip(1) for side in pad_left([ids[::-1] for ids in responses], pad))
    return Sequences(prompt_ids, prompt_mask, response_ids, response_mask)


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of token ids as ([n, s] ids, [n, s] bool mask), padded on the left.

    Example:
        >>> pad_left([[5], [6, 7]], pad=0)
        (tensor([[0, 5],
                [6, 7]]), tensor([[False,  True],
                [ True,  True]]))
    """
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return ids, mask
