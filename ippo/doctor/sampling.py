"""Are the log-probabilities that PPO computes those that the responses were sampled with?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ippo.doctor.finding import Finding, grade, report
from ippo.functional import token_entropy, token_logprobs
from ippo.rollout.engines.hf import sole_config
from ippo.rollout.sequences import Sequences


@dataclass(frozen=True)
class Surprise:
    """How much likelier sampled tokens were than tokens of their distributions are on average.

    Args:
        total: nats over all tokens; below 0, the sampler took rarer tokens than it should.
        variance: what chance adds to it, in nats squared.
        tokens: how many there are.
    """

    total: float
    variance: float
    tokens: int

    @property
    def gap(self) -> float:
        """Nats a token."""
        return self.total / max(1, self.tokens)

    @property
    def deviations(self) -> float:
        """The total in standard deviations of what chance gives."""
        return self.total / math.sqrt(self.variance + 1e-6)

    def __add__(self, other: Surprise) -> Surprise:
        return Surprise(self.total + other.total, self.variance + other.variance, self.tokens + other.tokens)


def surprise(logits: Tensor, ids: Tensor, mask: Tensor, temperature: float) -> Surprise:
    r"""Hold sampled tokens against the distributions that they are said to come from.

    Each token's log-probability has the mean :math:`-H` under its own distribution, so the sum of
    :math:`\log p(y_t) + H_t` is a martingale: 0 in expectation, with the variance :math:`\sum_t Var(\log p)`. Another
    temperature, a top-k or a repetition penalty in the sampler pulls it away from 0, whatever the sampler is.

    Args:
        logits: [n, t, v], predicting each token.
        ids: [n, t] sampled tokens.
        mask: [n, t] bool, which of them count.
        temperature: at which they are said to have been sampled.

    Example:
        >>> logits = torch.tensor([0.8, 0.2]).log().expand(1, 2, 2)
        >>> found = surprise(logits, torch.tensor([[0, 0]]), torch.tensor([[True, True]]), temperature=1.0)
        >>> print(f"{found.gap:.4f} nats, {found.deviations:.4f} deviations")  # 0.2 ln 4; that over 0.4 ln 4, sqrt(2)
        0.2773 nats, 0.7071 deviations
    """
    logprobs, entropy = token_logprobs(logits, ids, temperature), token_entropy(logits, temperature)
    every = (logits.float() / temperature).log_softmax(-1)
    squares = (every.exp() * every.clamp(min=-1e4).square()).sum(-1)
    gaps, variances = (logprobs + entropy)[mask], (squares - entropy.square()).clamp(min=0)[mask]
    return Surprise(float(gaps.sum()), float(variances.sum()), int(mask.sum()))


def sampled_distribution(found: Surprise, temperature: float) -> Finding:
    """The tokens look drawn from the recomputed distribution. Wrong above six standard deviations, if the gap is more
    than a fiftieth of a nat a token."""
    clear = abs(found.gap) > 0.02
    state = grade(abs(found.deviations), warning=4, wrong=6) if clear else "ok"
    side = "rarer" if found.gap < 0 else "commoner"
    text = f"{abs(found.gap):.3f} nats a token {side} than at T = {temperature:g}"
    remedy = "give the sampler the temperature of the log-probabilities and no top_k, top_p or repetition penalty"
    return report("sampling", state, f"{text} ({abs(found.deviations):.1f} sd, {found.tokens} tokens)", remedy)


def recomputed_logprobs(sampled: Tensor, recomputed: Tensor, mask: Tensor, half: bool) -> Finding:
    """Generation with its cache and one full forward pass agree: PPO's first ratios are 1.

    Args:
        sampled, recomputed: [n, t] log-probabilities in nats.
        mask: [n, t] bool.
        half: whether the policy has less than float32 precision.
    """
    apart = (sampled - recomputed).abs()[mask]
    mean, largest = float(apart.mean()), float(apart.max())
    state = grade(mean, *((0.02, 0.1) if half else (1e-4, 1e-2)))
    found = f"generation and training differ by {mean:.1e} nats (largest {largest:.1e})"
    remedy = "the model mishandles its cache or left padding: another attention implementation, or float32"
    return report("log-probabilities", state, found, remedy)


@torch.no_grad()
def replay(policy: Any, sequences: Sequences, temperature: float, pad: int) -> Tensor:
    """[n, t] log-probabilities of given responses on the path that samples: the model's own ``generate``, token by
    token, with its cache and the positions that it makes itself."""
    ids, width = sequences.response_ids, sequences.response_ids.shape[1]
    config = GenerationConfig(
        do_sample=False, max_new_tokens=width, pad_token_id=pad, output_logits=True, return_dict_in_generate=True
    )
    with sole_config(config, policy):
        made = policy.generate(
            input_ids=sequences.prompt_ids,
            attention_mask=sequences.prompt_mask.long(),
            logits_processor=LogitsProcessorList([_Given(ids, sequences.prompt_ids.shape[1])]),
        )
    return token_logprobs(torch.stack(made.logits, dim=1), ids, temperature)


class _Given(LogitsProcessor):
    """Leaves generation no choice but the given responses."""

    def __init__(self, ids: Tensor, start: int) -> None:
        self.ids, self.start = ids, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = self.ids[:, input_ids.shape[1] - self.start].unsqueeze(1)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)
