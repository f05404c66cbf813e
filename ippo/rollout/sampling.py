"""How responses are drawn."""

from __future__ import annotations

from dataclasses import dataclass

from ippo.errors import require


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn.

    Args:
        temperature: divides the logits; log-probabilities are taken at the same temperature. At 0, for evaluation only,
            each token is the most likely one.
        max_new_tokens: a response without an end token stops here and counts as unfinished.
        top_p: nucleus sampling. Only for evaluation: it changes the distribution that PPO's ratios are about.
        batch_tokens: tokens, of prompts and responses at their longest, generated at a time; bounds the memory of the
            key-value cache. Prompts of similar length go together then. None: prompts as they come.
    """

    temperature: float = 1.0
    max_new_tokens: int = 40
    top_p: float = 1.0
    batch_tokens: int | None = None

    def __post_init__(self) -> None:
        require(self.temperature >= 0, "sampling.temperature", self.temperature, "use a number of at least 0")
        require(self.max_new_tokens >= 1, "sampling.max_new_tokens", self.max_new_tokens, "use at least 1")
        require(0 < self.top_p <= 1, "sampling.top_p", self.top_p, "use a share above 0, at most 1")
        budget = self.batch_tokens
        require(budget is None or budget >= 1, "sampling.batch_tokens", budget, "use at least 1, or null")
