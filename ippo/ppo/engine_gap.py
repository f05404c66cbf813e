"""Between what the engine sampled with and the policy: told once where it is wide, and made up for where asked."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from ippo.errors import require
from ippo.functional import truncated_importance
from ippo.ppo.options import PPOOptions
from ippo.rollout.engines.base import RolloutEngine
from ippo.rollout.sequences import Sequences

WIDE = 0.05
"""Nats a token. Bfloat16 on one side alone makes 0.03 in the mean; weights that are one PPO iteration old 0.4 to 0.7
in small models, and less the slower the policy moves."""


def importance_of(engine: RolloutEngine, sequences: Sequences, old_logprobs: Tensor, ppo: PPOOptions) -> Tensor | None:
    """[n, t] truncated importance weights of what an engine sampled; None where they are not asked for.

    Args:
        engine: what sampled.
        sequences: what it returned.
        old_logprobs: [n, t] of its tokens under the policy.
        ppo: whether to correct, and the cap.

    Raises:
        UsageError: if they are asked for and the engine does not tell its log-probabilities.
    """
    told = sequences.engine_logprobs
    remedy = f"{type(engine).__name__} tells no log-probabilities: use auto, or an engine that returns engine_logprobs"
    require(told is not None or ppo.importance_correction != "on", "ppo.importance_correction", "on", remedy)
    wanted = {"on": True, "off": False, "auto": getattr(engine, "own_kernels", True)}[ppo.importance_correction]
    if told is None or not wanted:
        return None
    return truncated_importance(old_logprobs, told, sequences.response_mask, ppo.importance_cap)


class GapWarning:
    """Says once that the engine is not the policy."""

    def __init__(self) -> None:
        self._told = False

    def look_at(self, curves: Mapping[str, float]) -> None:
        """Warn where ``ppo/engine_gap`` is wide, and has not been before."""
        gap = curves.get("ppo/engine_gap", 0.0)
        if gap > WIDE and not self._told:
            self._told = True
            rank_zero_warn(
                f"ppo/engine_gap = {gap:.3g} nats a token (above {WIDE}): the engine did not sample from the policy as "
                "it is. Likely its weights are stale, or it computes in another precision: see that it takes the "
                "policy's weights before each rollout, in the policy's dtype"
            )
