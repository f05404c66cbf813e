"""What samples the rollouts, as the command line names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Union

from transformers import PreTrainedTokenizerBase

from ippo.rollout.engines.base import RolloutEngine
from ippo.rollout.engines.hf import HFGenerate

EngineName = Literal["hf"]
Engine = Union[EngineName, Callable[[PreTrainedTokenizerBase], RolloutEngine]]
"""A name, or what makes the engine of the policy's tokenizer; on the command line a ``class_path``, whose ``init_args``
are all but the tokenizer."""


def build_engine(choice: Engine, tokenizer: PreTrainedTokenizerBase) -> RolloutEngine:
    """The engine behind a name, or that which ``choice`` makes."""
    return HFGenerate(tokenizer) if choice == "hf" else choice(tokenizer)
