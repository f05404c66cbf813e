"""What samples the rollouts, as the command line names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Union

from transformers import PreTrainedTokenizerBase

from ippo.rollout.engines.base import RolloutEngine
from ippo.rollout.engines.compiled import CompiledGenerate
from ippo.rollout.engines.hf import HFGenerate
from ippo.rollout.engines.vllm import VLLMGenerate
from ippo.rollout.engines.vllm_server import VLLMServer

EngineName = Literal["hf", "compiled", "vllm", "vllm_server"]
Engine = Union[EngineName, Callable[[PreTrainedTokenizerBase], RolloutEngine]]
"""A name, or what makes the engine of the policy's tokenizer; on the command line a ``class_path``, whose ``init_args``
are all but the tokenizer."""

_CLASSES: dict[EngineName, Callable[[PreTrainedTokenizerBase], RolloutEngine]] = {
    "hf": HFGenerate,
    "compiled": CompiledGenerate,
    "vllm": VLLMGenerate,
    "vllm_server": VLLMServer,
}
ENGINES: dict[str, dict[str, Any]] = {
    name: {"class_path": f"{one.__module__}.{one.__qualname__}"} for name, one in _CLASSES.items()
}
"""What each name stands for, as ``config.yaml`` would have it."""


def build_engine(choice: Engine, tokenizer: PreTrainedTokenizerBase) -> RolloutEngine:
    """The engine behind a name, or that which ``choice`` makes."""
    return (_CLASSES[choice] if isinstance(choice, str) else choice)(tokenizer)
