"""Rollouts by vLLM on the machine that trains: ``pip install vllm``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from transformers import PreTrainedTokenizerBase

from ippo.errors import UsageError
from ippo.rollout.engines.vllm_requests import Answer, VLLMRequests
from ippo.rollout.weights_file import (
    folder_in_memory,
    of_this_machine,
    wait_for_the_writer,
    write_model,
    write_weights,
)

LONGEST = 8192


class VLLMGenerate(VLLMRequests):
    """Samples with vLLM in a process of its own, as vLLM starts it.

    Before each rollout the policy's weights go through a file in memory, adapters merged, so that it samples from the
    policy as it is; ``ppo/engine_gap`` shows whether it does, and ``ppo.importance_correction`` makes up for kernels
    that round otherwise. It computes in the precision that the policy computes in at its first rollout.

    Args:
        tokenizer: the policy's tokenizer.
        kv_cache_memory_bytes: what its keys and values take.
        options: others of ``vllm.LLM``, e.g. ``max_model_len=2048`` (by default the policy's context, at most 8192) or
            ``enforce_eager=True``.

    Raises:
        UsageError: if vLLM is not installed.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, kv_cache_memory_bytes: int = 4 * 2**30, **options: Any
    ) -> None:
        try:
            import vllm
        except ImportError as error:
            remedy = "vLLM is missing: pip install 'ippo[vllm]', or sample from a server by --engine vllm_server"
            raise UsageError("engine", "VLLMGenerate", remedy) from error
        self.tokenizer, self._vllm = tokenizer, vllm
        self.options = {"kv_cache_memory_bytes": kv_cache_memory_bytes, **options}
        self.llm: Any = None
        self._held = folder_in_memory()
        self._folder = Path(self._held.name)

    def _hand_over(self, policy: Any) -> None:
        folder, here = of_this_machine(self._folder, policy)
        if self.llm is None:
            write_model(policy, self.tokenizer, folder, here)
            wait_for_the_writer(policy)
            with isolate_rng():  # which vLLM may seed anew
                self.llm = self._vllm.LLM(str(folder), **self._own(policy), **self.options)
            return
        write_weights(policy, folder, here)
        wait_for_the_writer(policy)
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        self.llm.reset_prefix_cache()

    def _own(self, policy: Any) -> dict[str, Any]:
        """What is not left to vLLM's defaults, nor to what the model's directory declares."""
        device = policy.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else policy.dtype
        context = getattr(policy.config.get_text_config(decoder=True), "max_position_embeddings", None) or LONGEST
        own = {
            "dtype": str(dtype).removeprefix("torch."),
            "logprobs_mode": "processed_logprobs",
            "generation_config": "vllm",
            "max_model_len": min(context, LONGEST),
            "disable_log_stats": True,
        }
        return {name: value for name, value in own.items() if name not in self.options}

    def _answers(self, prompts: list[list[int]], requests: list[dict[str, Any]]) -> list[Answer]:
        asked = [self._vllm.SamplingParams(detokenize=False, **request) for request in requests]
        texts = [{"prompt_token_ids": ids} for ids in prompts]
        outputs = [answer.outputs[0] for answer in self.llm.generate(texts, asked, use_tqdm=False)]
        return [
            Answer(
                tokens=list(output.token_ids),
                logprobs=[told[token].logprob for told, token in zip(output.logprobs, output.token_ids, strict=True)],
                ended=output.finish_reason == "stop",
            )
            for output in outputs
        ]
