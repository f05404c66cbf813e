"""What every engine promises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from ippo.rollout.sampling import Sampling
from ippo.rollout.sequences import Sequences


@runtime_checkable
class RolloutEngine(Protocol):
    """Anything that samples: Hugging Face here, a server elsewhere."""

    def generate(self, policy: Any, prompts: Sequence[str], sampling: Sampling) -> Sequences:
        """One response a prompt, in order, on the policy's device.

        ``finished`` says which responses ended by themselves. An engine that leaves the end token in may keep silent:
        the last token tells then. One that strips it must say so, or is refused.

        ``engine_logprobs`` should say what each token was drawn with: then ``ppo/engine_gap`` shows an engine whose
        weights are stale, or whose kernels round. Where ``own_kernels`` is True (or missing) and they are told, PPO
        makes up for the difference (``ppo.importance_correction``).
        """
