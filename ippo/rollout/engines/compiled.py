"""Rollouts by a compiled decoding step over a static cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, StaticCache

from ippo.errors import require
from ippo.modes import evaluation_mode, uncompiled
from ippo.rollout.adapters import Merged
from ippo.rollout.engines.hf import Batch, HFGenerate
from ippo.rollout.grouped_attention import grouped
from ippo.rollout.sampling import Sampling
from ippo.rollout.sequences import Sequences
from ippo.rollout.sharded import in_parts
from ippo.rollout.soundness import TOKENS, few_tokens, read
from ippo.rollout.static_decoding import Decoder, Step, step

Backend = Literal["auto", "inductor", "eager"]


class CompiledGenerate(HFGenerate):
    """Samples with a decoding step that is compiled once and run for every token, where ``generate`` runs Python.

    Keys and values lie in a cache of a fixed length, and batches have one of few sizes, so that a run compiles a few
    times and not in each iteration. Rows that have ended leave when at least half have: the batch becomes smaller, and
    ends with its last row. Each different prompt is read once. Draws come from torch's global generator.

    A model without a static cache, and nucleus sampling (``top_p``, evaluation alone), are sampled as
    :class:`ippo.rollout.engines.hf.HFGenerate` samples; the first is said once. On a GPU compiling takes most of the
    first rollout.

    Args:
        tokenizer, batch_size, merge_adapters: see there. Merged adapters, and under autocast weights that are cast,
            keep their memory between rollouts.
        backend: of ``torch.compile``. ``"auto"`` is inductor or, where there is no compiler for it, eager: the same
            program run by Python, which is said once.
        keep_caches: hold keys and values' memory between rollouts; without it a CUDA graph is recorded anew for every
            batch. None: on a GPU.
    """

    own_kernels = True

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 256,
        merge_adapters: bool = True,
        backend: Backend = "auto",
        keep_caches: bool | None = None,
    ) -> None:
        super().__init__(tokenizer, batch_size, merge_adapters)
        require(backend in ("auto", "inductor", "eager"), "backend", backend, "use auto, inductor or eager")
        self.backend, self.keep_caches = backend, keep_caches
        self._kept: dict[tuple[Any, ...], StaticCache] = {}
        self._merged = Merged(keep=True, adapters=merge_adapters, cast=True)
        self._steps: dict[str, Step] = {}
        self._static: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

    @torch.no_grad()
    def generate(self, policy: Any, prompts: Sequence[str], sampling: Sampling) -> Sequences:
        """See :class:`ippo.rollout.engines.base.RolloutEngine`."""
        remedy = "its step is compiled for a whole policy, and ranks hold parts of this one: use hf or vllm"
        require(not in_parts(policy), "engine", type(self).__name__, remedy)
        with torch.inference_mode(mode=False):  # in validation its tensors would need a program of their own
            return super().generate(policy, prompts, sampling)

    @contextmanager
    def _ready(self, policy: Any) -> Iterator[None]:
        self._is_static(policy)  # tried while the policy is itself
        with self._merged(policy), grouped(policy):
            yield

    def _sample(self, batch: Batch, sampling: Sampling, bar: tqdm) -> tuple[Tensor, Tensor]:
        one_token = batch.ids.shape[1] == 1  # nothing to read before the first step
        if one_token or batch.minds_padding or sampling.top_p < 1 or not self._is_static(batch.policy):
            return super()._sample(batch, sampling, bar)
        device = batch.ids.device
        keeps = device.type == "cuda" if self.keep_caches is None else self.keep_caches
        decoder = Decoder(
            self._step(device.type),
            torch.tensor(self._ends.ids, device=device),
            sampling.temperature,
            partial(bar.update, 1),
            self._kept if keeps else None,
        )
        return decoder.answer(batch.policy, batch.ids, batch.mask, sampling.max_new_tokens)

    def _is_static(self, policy: Any) -> bool:
        """Whether the policy decodes over a static cache what it reads without one. Tried once a policy."""
        if policy not in self._static:
            why = _why_not(policy)
            self._static[policy] = not why
            if why:
                rank_zero_warn(
                    f"engine compiled: {type(policy).__name__} {why}, so that it is sampled as by --engine hf, at the "
                    "speed of Python: several times slower on a GPU"
                )
        return self._static[policy]

    def _step(self, device: str) -> Step:
        if device not in self._steps:
            backend = self.backend
            if backend == "auto":
                backend = "inductor" if _inductor_works(device) else "eager"
            graphs = backend == "inductor" and device == "cuda"
            mode = "reduce-overhead" if graphs else None
            compiled: Any = torch.compile(step, backend=backend, fullgraph=True, mode=mode)

            def run(*arguments: Any) -> tuple[Tensor, Tensor]:
                torch.compiler.cudagraph_mark_step_begin()
                return compiled(*arguments)

            self._steps[device] = run if graphs else compiled
        return self._steps[device]


def _why_not(policy: Any) -> str:
    """Why a policy cannot decode over a static cache; empty if it can. Without autocast: rounding is no reason."""
    if not getattr(policy, "_can_compile_fullgraph", False):
        return "has no static cache, or cannot be compiled"
    text, mask = few_tokens(policy)
    greedy = Decoder(step, torch.tensor([-1], device=text.device), 0.0)
    full = torch.autocast(policy.device.type, enabled=False)
    with evaluation_mode(policy), grouped(policy), full, uncompiled():
        try:
            tokens, logprobs = greedy.answer(policy, text, mask.bool(), 3)
        except Exception as error:
            return f"does not decode over a static cache ({type(error).__name__})"
        whole = torch.cat([text, tokens], 1)
        logits = read(policy, whole, torch.ones_like(whole))[:, TOKENS - 1 : -1]
    read_so = logits.float().log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    off = (read_so - logprobs).abs()  # in half precision rounding may send a token to another expert: not the largest
    far = off.max() > 1e-3 if logits.dtype in (torch.float32, torch.float64) else off.median() > 0.25
    return "decodes otherwise over a static cache than it reads" if far else ""


@lru_cache
def _inductor_works(device: str) -> bool:
    """Whether there is a compiler for it; said once if not."""
    try:
        torch.compile(_plus_one, backend="inductor")(torch.zeros(2, device=device))
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        rank_zero_warn(
            f"engine compiled: torch's inductor does not work here ({type(error).__name__}: {first[:120]}), so that "
            "the decoding step is run by Python: no faster than --engine hf. On a CPU it needs a C++ compiler (g++)"
        )
        return False
    return True


def _plus_one(x: Tensor) -> Tensor:
    return x + 1
