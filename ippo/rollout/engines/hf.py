"""Rollouts by ``transformers``: right on every architecture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from peft import PeftModel
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from ippo.errors import require
from ippo.modes import evaluation_mode, uncompiled
from ippo.rollout.adapters import Merged, cast_once
from ippo.rollout.end_tokens import end_tokens
from ippo.rollout.engines.base import RolloutEngine
from ippo.rollout.prefill import shared_prefill
from ippo.rollout.prompts import encode_prompts
from ippo.rollout.sampling import Sampling
from ippo.rollout.sequences import Sequences, pad_left, within_budget
from ippo.rollout.sharded import as_many_calls, in_parts
from ippo.rollout.soundness import minds_left_padding


@dataclass(frozen=True)
class Batch:
    """Prompts that are answered together.

    Args:
        policy: the causal language model that answers.
        ids, mask: [n, s] token ids, and bool, True on the prompt.
        minds_padding: whether the policy does; then there is none.
    """

    policy: Any
    ids: Tensor
    mask: Tensor
    minds_padding: bool = False


class HFGenerate(RolloutEngine):
    """``transformers``' own ``generate``, in batches, with nothing left to a model's saved generation config.

    Draws from torch's global generator, so ``seed_everything`` repeats it. A progress bar of its own appears when a
    rollout takes longer than two seconds. Adapters (the layout ``lora``) are merged for the rollout, and under autocast
    each weight is cast once. Where most prompts of a batch repeat another one, each is read once.

    Args:
        tokenizer: the policy's tokenizer; must have pad and eos tokens (they may be the same).
        batch_size: prompts generated at a time, at most.
        merge_adapters: takes the memory of the adapted weights once more while it samples; in half precision the sum is
            rounded, which ``ppo/engine_gap`` shows. False leaves adapters apart: about twice the time on a GPU.
    """

    own_kernels = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase, batch_size: int = 256, merge_adapters: bool = True) -> None:
        require(
            tokenizer.eos_token_id is not None,
            "tokenizer.eos_token",
            None,
            "set tokenizer.eos_token: responses must end",
        )
        require(
            tokenizer.pad_token_id is not None, "tokenizer.pad_token", None, "set tokenizer.pad_token (eos will do)"
        )
        require(batch_size >= 1, "batch_size", batch_size, "use at least 1")
        self.tokenizer, self.batch_size = tokenizer, batch_size
        self.merge_adapters = merge_adapters
        self._told = False

    @torch.no_grad()
    def generate(self, policy: Any, prompts: Sequence[str], sampling: Sampling) -> Sequences:
        require_unwrapped(policy)
        if in_parts(policy) and not self._told:
            self._told = True
            rank_zero_warn(
                "the policy is in parts, and samples by itself: each layer is gathered anew for every token, which is "
                "slow. --engine vllm samples from a copy, where a card has room for one"
            )
        self._ends = end_tokens(policy, self.tokenizer)
        ids = encode_prompts(self.tokenizer, prompts, "prompts")
        prompt_ids, prompt_mask = pad_left(ids, self.tokenizer.pad_token_id)
        prompt_ids, prompt_mask = prompt_ids.to(policy.device), prompt_mask.to(policy.device)
        width = sampling.max_new_tokens
        minds = bool(len(prompt_mask)) and not bool(prompt_mask.all()) and minds_left_padding(policy)
        batches = (self._of_one_length if minds else self._batches)(prompt_mask, sampling)
        response_ids = prompt_ids.new_full((len(prompts), width), self.tokenizer.pad_token_id)
        logprobs = torch.zeros(response_ids.shape, dtype=torch.float32, device=policy.device)
        with (
            sole_config(self._config(sampling), policy),
            self._ready(policy),
            tqdm(total=len(batches) * width, desc="rollout", unit="token", leave=False, delay=2.0, disable=None) as bar,
        ):
            for number, (rows, columns) in enumerate(as_many_calls(policy, batches, policy.device)):
                batch = Batch(policy, prompt_ids[rows, columns], prompt_mask[rows, columns], minds)
                mine = number < len(batches)
                with nullcontext() if mine else isolate_rng():
                    sampled, told = self._sample(batch, sampling, bar)
                if not mine:  # it keeps this rank in step
                    continue
                response_ids[rows, : sampled.shape[1]] = sampled
                logprobs[rows, : sampled.shape[1]] = told
        finished, mask = self._ends.among(response_ids).any(1), self._until_eos(response_ids)
        as_it_is = sampling.temperature > 0 and sampling.top_p == 1.0  # else tokens are drawn from another law
        drawn = logprobs.masked_fill(~mask, 0) if as_it_is else None
        return Sequences(prompt_ids, prompt_mask, response_ids, mask, finished=finished, engine_logprobs=drawn).trim()

    def _batches(self, prompt_mask: Tensor, sampling: Sampling) -> list[tuple[Tensor, slice]]:
        """The rows of each batch, and the columns that hold their prompts."""
        lengths, whole = prompt_mask.sum(1), slice(None)
        if sampling.batch_tokens is None:
            return [(rows, whole) for rows in torch.arange(len(lengths)).split(self.batch_size)]
        longest = torch.full_like(lengths, sampling.max_new_tokens)
        batches = within_budget(lengths, longest, self.batch_size, sampling.batch_tokens)
        return [(rows, slice(prompt_mask.shape[1] - int(lengths[rows].max()), None)) for rows in batches]

    def _of_one_length(self, prompt_mask: Tensor, sampling: Sampling) -> list[tuple[Tensor, slice]]:
        """The same, for a policy that minds padding: more batches, and smaller ones."""
        lengths, width = prompt_mask.sum(1), prompt_mask.shape[1]
        groups = [(lengths == length).nonzero().flatten() for length in lengths.unique()]
        return [
            (group[rows], slice(width - int(lengths[group[0]]), None))
            for group in groups
            for rows, _ in self._batches(prompt_mask[group], sampling)
        ]

    def _config(self, sampling: Sampling) -> GenerationConfig:
        drawn: dict[str, Any] = {"temperature": sampling.temperature, "top_k": 0, "top_p": sampling.top_p}
        return GenerationConfig(
            do_sample=sampling.temperature > 0,
            **(drawn if sampling.temperature > 0 else {}),
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=list(self._ends.ids),
            pad_token_id=self.tokenizer.pad_token_id,
            remove_invalid_values=True,  # NaN logits must not crash the draw; their episodes are dropped by name later
        )

    @contextmanager
    def _ready(self, policy: Any) -> Iterator[None]:
        """The policy as it is quickest to sample from."""
        cast = nullcontext() if in_parts(policy) else cast_once(policy, policy.device.type)  # would keep all of them
        with Merged()(policy) if self.merge_adapters else nullcontext(), cast:
            yield

    def _sample(self, batch: Batch, sampling: Sampling, bar: tqdm) -> tuple[Tensor, Tensor]:
        """[n, t] response ids and their log-probabilities; stops as soon as every row has ended. What follows a row's
        end has no meaning."""
        drawn = DrawnLogprobs(sampling.temperature or 1.0)
        read_each = batch.minds_padding or in_parts(batch.policy)  # other ranks' prompts may not repeat
        with uncompiled():  # a cache that grows would compile each layer many times
            sampled = batch.policy.generate(
                input_ids=batch.ids,
                attention_mask=batch.mask.long(),
                stopping_criteria=StoppingCriteriaList([_Progress(bar)]),
                logits_processor=LogitsProcessorList([drawn]),
                past_key_values=None if read_each else shared_prefill(batch.policy, batch.ids, batch.mask),
            )[:, batch.ids.shape[1] :]
        return sampled, drawn.of(sampled)

    def _until_eos(self, ids: Tensor) -> Tensor:
        """[n, t] bool: up to and including the first token that ends a response of the policy that sampled last."""
        return self._ends.until_first(ids)


def require_unwrapped(policy: Any) -> None:
    """Refuse a model that PEFT has wrapped. The wrapper has generation settings, a trunk and parameter names of its
    own, and some of its methods put tokens in front of the prompt.

    Raises:
        UsageError: naming the layout that trains adapters.
    """
    remedy = (
        "PEFT has wrapped it: give policy.merge_and_unload(), or the model from before get_peft_model; "
        "--layout lora, in code LoraModels, trains adapters of its own"
    )
    require(not isinstance(policy, PeftModel), "policy", type(policy).__name__, remedy)


@contextmanager
def sole_config(config: GenerationConfig, policy: Any) -> Iterator[None]:
    """Evaluation mode and this generation config alone. ``generate`` fills whatever a config leaves open (top_k,
    repetition_penalty, ...) from the model's own one, so passing ours is not enough: it takes the model's place."""
    own, policy.generation_config = policy.generation_config, config
    try:
        with evaluation_mode(policy):
            yield
    finally:
        policy.generation_config = own


class DrawnLogprobs(LogitsProcessor):
    """Changes nothing; notes the log-probability of each token that ``generate`` draws, and keeps the logits of one
    step alone.

    Args:
        temperature: of the draw; ``transformers`` calls this before it divides by it.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self._steps: list[Tensor] = []
        self._last: tuple[Tensor, Tensor] | None = None  # scaled logits, and the logarithm of their sum of exponentials

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._last is not None:
            self._steps.append(self._of_last(input_ids[:, -1]))
        scaled = scores.float() / self.temperature
        self._last = (scaled, scaled.logsumexp(-1))
        return scores

    def of(self, sampled: Tensor) -> Tensor:
        """[n, t] of the [n, t] tokens that were drawn; what follows an end has no meaning."""
        if len(self._steps) < sampled.shape[1]:
            self._steps.append(self._of_last(sampled[:, -1]))
        return torch.stack(self._steps[: sampled.shape[1]], 1)

    def _of_last(self, tokens: Tensor) -> Tensor:
        assert self._last is not None
        logits, norm = self._last
        return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - norm


class _Progress(StoppingCriteria):
    """Never stops anything; moves the bar by one token."""

    def __init__(self, bar: tqdm) -> None:
        self.bar = bar

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        self.bar.update(1)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
