"""Rollouts by vLLM, in the training's own process: ``pip install vllm``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from ippo.errors import UsageError
from ippo.rollout.end_tokens import EndTokens, end_tokens
from ippo.rollout.engines.base import RolloutEngine
from ippo.rollout.prompts import encode_prompts
from ippo.rollout.sampling import Sampling
from ippo.rollout.sequences import Sequences, pad_left


class VLLMGenerate(RolloutEngine):
    """A :class:`ippo.rollout.engines.base.RolloutEngine` that samples with vLLM on the GPU that also trains.

    Before each rollout the policy's weights are handed to the engine, so that it samples from the policy as it is. The
    log-probabilities that PPO needs are taken by the policy itself, afterwards: where vLLM's kernels round otherwise,
    no curve shows it. Set ``VLLM_ENABLE_V1_MULTIPROCESSING=0``: the weights are handed over within the process. Each
    request has a seed from torch's global generator; as far as vLLM repeats a seeded request, a resumed run draws the
    same.

    Args:
        tokenizer: the policy's tokenizer.
        model: a directory or hub id with the policy's architecture; its weights are replaced.
        options: of ``vllm.LLM``, e.g. ``gpu_memory_utilization=0.3``, ``enable_sleep_mode=True``.

    Raises:
        UsageError: if vLLM is not installed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: str, **options: Any) -> None:
        try:
            import vllm
        except ImportError as error:
            raise UsageError("engine", "VLLMGenerate", "vLLM is missing: pip install vllm") from error
        self.tokenizer, self._request = tokenizer, vllm.SamplingParams
        self.llm = vllm.LLM(model=model, **options)

    @torch.no_grad()
    def generate(self, policy: Any, prompts: Sequence[str], sampling: Sampling) -> Sequences:
        """See :meth:`ippo.rollout.engines.base.RolloutEngine.generate`."""
        self._hand_over(policy)
        ends = end_tokens(policy, self.tokenizer)
        ids = encode_prompts(self.tokenizer, prompts, "prompts")
        requests = [
            self._request(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=-1,
                max_tokens=sampling.max_new_tokens,
                seed=seed,
                detokenize=False,
                stop_token_ids=list(ends.ids),
                ignore_eos=True,  # of the engine's own model directory, which may declare others
            )
            for seed in torch.randint(2**31, (len(ids),)).tolist()
        ]
        answers = self.llm.generate([{"prompt_token_ids": row} for row in ids], requests, use_tqdm=False)
        outputs = [answer.outputs[0] for answer in answers]
        responses = [torch.tensor(_closed(output, ends)) for output in outputs]
        finished = torch.tensor([output.finish_reason == "stop" for output in outputs])
        lengths = torch.tensor([len(response) for response in responses])
        prompt_ids, prompt_mask = pad_left(ids, self.tokenizer.pad_token_id)
        response_ids = pad_sequence(responses, batch_first=True, padding_value=float(self.tokenizer.pad_token_id))
        mask = torch.arange(response_ids.shape[1]) < lengths.unsqueeze(1)
        return Sequences(prompt_ids, prompt_mask, response_ids, mask, finished=finished).to(policy.device)

    def _hand_over(self, policy: Any) -> None:
        """Put the policy's weights in the place of the engine's, and forget what was computed with the old ones."""
        worker = self.llm.llm_engine.model_executor.driver_worker
        worker.model_runner.model.load_weights(policy.state_dict().items())
        self.llm.reset_prefix_cache()


def _closed(output: Any, ends: EndTokens) -> list[int]:
    """Token ids of a response, its end token included where it has ended by itself."""
    ids = list(output.token_ids)
    stripped = output.finish_reason == "stop" and not (ids and ids[-1] in ends.ids)
    end = output.stop_reason if isinstance(output.stop_reason, int) else ends.closing
    return [*ids, end] if stripped else ids
