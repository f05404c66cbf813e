"""PPO post-training of language models that asks of each rollout whether to learn from it.

The public names are imported when they are first used, so that ``import ippo`` stays quick and light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ippo.data.prompts import PromptDataModule
    from ippo.events import emit
    from ippo.ppo.module import PPOModule
    from ippo.rollout.episodes import Episodes
    from ippo.sft import SFTModule

__version__ = "0.1.0"
__all__ = ["Episodes", "PPOModule", "PromptDataModule", "SFTModule", "emit"]

_HOMES = {
    "Episodes": "ippo.rollout.episodes",
    "PPOModule": "ippo.ppo.module",
    "PromptDataModule": "ippo.data.prompts",
    "SFTModule": "ippo.sft",
    "emit": "ippo.events",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ippo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
