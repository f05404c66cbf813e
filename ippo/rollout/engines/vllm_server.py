"""Rollouts by a vLLM server on this machine; the environment that trains needs no vLLM."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from transformers import PreTrainedTokenizerBase

from ippo.distributed import rank, total_of, world_size
from ippo.errors import UsageError, require
from ippo.rollout.engines.vllm_requests import Answer, VLLMRequests
from ippo.rollout.sharded import in_parts
from ippo.rollout.weights_file import folder_in_memory, write_weights

COMMAND = (
    "VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server --model DIR --host 127.0.0.1 --port 8000 "
    "--dtype float32 --logprobs-mode processed_logprobs --generation-config vllm"
)
"""Starts one. DIR is any directory with the policy's architecture and tokenizer; its weights are replaced. The dtype is
what the policy computes in."""


class VLLMServer(VLLMRequests):
    """Samples from vLLM's server, started by :data:`COMMAND`.

    Weights go through a file in memory, so that the server must be on this machine. Its development mode lets whoever
    reaches the port replace them: keep it on the loopback. All ranks share one server; the first hands over.

    Args:
        tokenizer: the policy's tokenizer.
        url: of the server, on the loopback.
        at_a_time: requests under way together, at most.
        timeout: seconds that one request may take.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        url: str = "http://127.0.0.1:8000",
        at_a_time: int = 256,
        timeout: float = 600.0,
    ) -> None:
        remedy = "weights go through a file of this machine, and the port lets others replace them: use the loopback"
        require(urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1"), "engine.url", url, remedy)
        require(at_a_time >= 1, "engine.at_a_time", at_a_time, "use at least 1")
        self.tokenizer, self.url, self.at_a_time, self.timeout = tokenizer, url.rstrip("/"), at_a_time, timeout
        self._model = ""
        self._held = folder_in_memory()
        self._folder = Path(self._held.name)

    def _hand_over(self, policy: Any) -> None:
        first = rank() == 0
        if first or in_parts(policy):
            write_weights(policy, self._folder, here=first)
        if first:
            self._post("/collective_rpc", method="reload_weights", kwargs={"weights_path": str(self._folder)})
            self._post("/reset_prefix_cache")
        if world_size() > 1:
            total_of(0, policy.device)  # no rank asks before the weights are there

    def _answers(self, prompts: list[list[int]], requests: list[dict[str, Any]]) -> list[Answer]:
        self._model = self._model or self._call("/v1/models")["data"][0]["id"]
        with ThreadPoolExecutor(self.at_a_time) as pool:
            return list(pool.map(self._answer, prompts, requests))

    def _answer(self, prompt: list[int], request: dict[str, Any]) -> Answer:
        found = self._post("/v1/completions", model=self._model, prompt=prompt, return_token_ids=True, **request)
        choice = found["choices"][0]
        return Answer(choice["token_ids"], choice["logprobs"]["token_logprobs"], choice["finish_reason"] == "stop")

    def _post(self, path: str, **body: Any) -> Any:
        return self._call(path, json.dumps(body).encode())

    def _call(self, path: str, body: bytes | None = None) -> Any:
        """The answer to a request, GET without a body.

        Raises:
            UsageError: if there is no server, or it refuses.
        """
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            said = f"{path} answers {error.code}: {error.read().decode(errors='replace')[:200]}"
            raise UsageError("engine.url", self.url, f"{said}; start it by: {COMMAND}") from error
        except OSError as error:
            raise UsageError("engine.url", self.url, f"no server answers ({error}); start it by: {COMMAND}") from error
        return json.loads(text) if text.strip() else None
