"""How a model is given sequences: padded on both sides as they were sampled, or with each text first and no mask.

A causal model makes the same of a text whatever follows it. With all padding after the texts it needs no mask for their
tokens, and a mask is what keeps attention from its flash kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from ippo.rollout.sequences import Sequences
from ippo.rollout.soundness import minds_left_padding, minds_no_mask

Padding = Literal["auto", "both", "right"]

_tried: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""For each model, whether it can do without a mask."""


@dataclass(frozen=True)
class Reading:
    """A model's arguments for some sequences, and where in its answer their responses are.

    Args:
        inputs: of its forward. The cache is off: nothing is generated here.
        steps: response tokens of the longest.
        places: [n, t] the column of the token before each response token; None where responses begin in one column.
    """

    inputs: dict[str, Any]
    steps: int
    places: Tensor | None = None

    @property
    def columns(self) -> int:
        """How many of the columns, before the last, hold all that is said of responses; the head need see no others."""
        return self.steps if self.places is None else self._width - 1 - int(self.places[:, 0].min())

    def before_responses(self, answer: Tensor) -> Tensor:
        """[n, t, ...] what a model says at the token before each response token; padding holds anything.

        Args:
            answer: [n, columns, ...] for all columns, or for the last of them.
        """
        if self.places is None:
            start = answer.shape[1] - self.steps - 1
            return answer[:, start:-1]
        columns = self.places - (self._width - answer.shape[1])
        return answer[torch.arange(len(answer), device=answer.device)[:, None], columns]

    @property
    def _width(self) -> int:
        return self.inputs["input_ids"].shape[1]


def reading(model: nn.Module, sequences: Sequences) -> Reading:
    """How a model takes sequences: as ``padding`` on it says (``models.padding``), where it can.

    Args:
        model: a causal language model, or its trunk.
        sequences: prompts and responses.
    """
    if len(sequences) and is_right(model, sequences.prompt_ids.device) and does_without_mask(model):
        return texts_first(sequences, masked=False)
    if not bool(sequences.prompt_mask.all()) and minds_left_padding(model):
        return texts_first(sequences, masked=True)
    return as_sampled(sequences)


def is_right(model: Any, device: torch.device) -> bool:
    """Whether texts are to be first: on a GPU, unless ``models.padding`` says otherwise."""
    wanted: Padding = getattr(model, "padding", "auto")
    return wanted == "right" or (wanted == "auto" and device.type == "cuda")


def as_sampled(sequences: Sequences) -> Reading:
    """Prompts padded on the left, responses on the right, and a mask."""
    inputs = {
        "input_ids": sequences.input_ids,
        "attention_mask": sequences.attention_mask,
        "position_ids": sequences.position_ids,
        "use_cache": False,
    }
    return Reading(inputs, sequences.response_ids.shape[1])


def texts_first(sequences: Sequences, masked: bool) -> Reading:
    """Each row's text in its first columns and all its padding after it; as wide as the longest text.

    Args:
        sequences: prompts and responses.
        masked: whether the model is told which columns are padding.
    """
    ids, steps = sequences.input_ids, sequences.response_ids.shape[1]
    prompts = sequences.prompt_mask.sum(1, keepdim=True)
    lengths = prompts + sequences.lengths.unsqueeze(1)
    columns = torch.arange(int(lengths.max()), device=ids.device)
    before = sequences.prompt_ids.shape[1] - prompts
    inputs = {
        "input_ids": ids.gather(1, (before + columns).clamp(max=ids.shape[1] - 1)),
        "attention_mask": (columns < lengths).long() if masked else None,
        "position_ids": columns.expand(len(ids), -1),
        "use_cache": False,
    }
    places = prompts - 1 + torch.arange(steps, device=ids.device)
    return Reading(inputs, steps, places.clamp(max=len(columns) - 1))


def does_without_mask(model: Any) -> bool:
    """Whether a text that is read without a mask, with padding after it, is read as without padding. Tried once a
    model, outside of mixed precision; if not, it is said, with the cost."""
    if model not in _tried:
        _tried[model] = not minds_no_mask(model)
        if not _tried[model]:
            rank_zero_warn(
                f"{type(model).__name__}: without a mask, padding after a text changes what it makes of it. So "
                "models.padding is both: padded as sampled, with a mask, which keeps attention from its flash kernels."
            )
    return _tried[model]
