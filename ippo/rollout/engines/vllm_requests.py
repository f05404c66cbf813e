"""What is asked of vLLM, in this process or over the network, and what becomes of its answers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from ippo.rollout.end_tokens import end_tokens
from ippo.rollout.engines.base import RolloutEngine
from ippo.rollout.prompts import encode_prompts
from ippo.rollout.sampling import Sampling
from ippo.rollout.sequences import Sequences, pad_left


@dataclass(frozen=True)
class Answer:
    """One response.

    Args:
        tokens: its end token included.
        logprobs: of each token, as it was drawn.
        ended: whether it ended by itself.
    """

    tokens: list[int]
    logprobs: list[float]
    ended: bool


class VLLMRequests(RolloutEngine):
    """What both vLLM engines share: every response is a request with a seed of its own, from torch's global generator,
    so that it repeats whatever else is sampled beside it; a batched request with one seed would give equal prompts
    equal answers."""

    own_kernels = True
    tokenizer: PreTrainedTokenizerBase

    @torch.no_grad()
    def generate(self, policy: Any, prompts: Sequence[str], sampling: Sampling) -> Sequences:
        """See :meth:`ippo.rollout.engines.base.RolloutEngine.generate`."""
        self._hand_over(policy)
        ends = list(end_tokens(policy, self.tokenizer).ids)
        ids = encode_prompts(self.tokenizer, prompts, "prompts")
        requests: list[dict[str, Any]] = [
            {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": 0,
                "max_tokens": sampling.max_new_tokens,
                "seed": seed,
                "stop_token_ids": ends,
                "ignore_eos": True,  # of the engine's own model directory, which may declare others
                "logprobs": 0,
            }
            for seed in torch.randint(2**31, (len(ids),)).tolist()
        ]
        answers = self._answers(ids, requests)
        prompt_ids, prompt_mask = pad_left(ids, self.tokenizer.pad_token_id)
        tokens = [torch.tensor(answer.tokens) for answer in answers]
        logprobs = [torch.tensor(answer.logprobs, dtype=torch.float32) for answer in answers]
        lengths = torch.tensor([len(answer.tokens) for answer in answers])
        response_ids = pad_sequence(tokens, batch_first=True, padding_value=float(self.tokenizer.pad_token_id))
        as_it_is = sampling.temperature > 0 and sampling.top_p == 1.0  # else tokens are drawn from another law
        return Sequences(
            prompt_ids,
            prompt_mask,
            response_ids,
            torch.arange(response_ids.shape[1]) < lengths.unsqueeze(1),
            finished=torch.tensor([answer.ended for answer in answers]),
            engine_logprobs=pad_sequence(logprobs, batch_first=True) if as_it_is else None,
        ).to(policy.device)

    @abstractmethod
    def _hand_over(self, policy: Any) -> None:
        """Put the policy's weights in the place of the engine's, and forget what was computed with the old ones."""

    @abstractmethod
    def _answers(self, prompts: list[list[int]], requests: list[dict[str, Any]]) -> list[Answer]:
        """One for each prompt and request, in order."""
