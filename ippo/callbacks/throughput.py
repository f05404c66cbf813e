"""How fast an iteration was: tokens a second, seconds, memory, and the share of the card's peak."""

from __future__ import annotations

import resource
import sys
from typing import Any

import lightning as L
import torch
from torch import nn

from ippo.distributed import largest, total_of
from ippo.functional.throughput import pass_flops, peak_flops
from ippo.ppo.stopwatch import now
from ippo.rollout.episodes import Episodes

GIB = 2**30


class Throughput(L.Callback):
    """Logs ``time/*`` of each iteration of a :class:`ippo.PPOModule`, all ranks together.

    ``time/rollout_tokens`` and ``time/update_tokens`` are tokens a second: of responses that were drawn (the time
    includes rewards and the log-probability pass), and of prompts and responses that went through forward and backward,
    padding left out. ``time/iteration`` is all seconds of an iteration. ``time/memory`` is the peak so far, in GiB:
    what torch held on a GPU, of the fullest rank, else what the process held. ``time/peak_share`` is the update's share
    of what the card can do in bfloat16 (MFU): the operations of policy and critic over its seconds; only for cards
    whose figure is known, and attention's own operations are not counted.
    """

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        self._start = 0.0
        self._drawn = self._prompts = self._responses = 0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self._start = now(pl_module.device)
        self._drawn = self._prompts = self._responses = 0

    def on_update_start(self, trainer: L.Trainer, pl_module: L.LightningModule, episodes: Episodes) -> None:
        """Count what was drawn, and what is left to learn from."""
        epochs = getattr(getattr(pl_module, "ppo", None), "inner_epochs", 1)
        self._drawn = sum(int(part.lengths.sum()) for part in (episodes, *episodes.dropped))
        self._prompts, self._responses = (epochs * int(m.sum()) for m in (episodes.prompt_mask, episodes.response_mask))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        device, seconds = pl_module.device, now(pl_module.device) - self._start
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        drawn, prompts, responses = (total_of(n, device) for n in (self._drawn, self._prompts, self._responses))
        self.last = {"time/iteration": seconds, "time/memory": largest(peak_memory(device), device) / GIB}
        if drawn and logged.get("time/rollout"):
            self.last["time/rollout_tokens"] = drawn / logged["time/rollout"]
        if prompts + responses and logged.get("time/update"):
            self.last["time/update_tokens"] = (prompts + responses) / logged["time/update"]
            name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
            if peak := peak_flops(name):
                flops = update_flops(getattr(pl_module, "model", None), prompts, responses)
                self.last["time/peak_share"] = flops / logged["time/update"] / (peak * trainer.world_size)
        pl_module.log_dict(self.last)


def update_flops(models: Any, prompts: int, responses: int) -> float:
    """Operations of the forward and backward passes of policy and critic.

    Args:
        models: with a ``policy``, and a ``value`` or None.
        prompts, responses: tokens of each that pass; the policy's head meets those of responses alone.
    """
    flops = 0.0
    for model in filter(None, (getattr(models, "policy", None), getattr(models, "value", None))):
        embeddings = {part.weight for part in model.modules() if isinstance(part, nn.Embedding)}
        head = getattr(model, "get_output_embeddings", lambda: None)()
        ends = {head.weight} if head is not None else set()
        for parameter in model.parameters():
            if parameter.dim() == 2 and (parameter in ends or parameter not in embeddings):
                tokens = responses if parameter in ends else prompts + responses
                flops += pass_flops(parameter.numel(), parameter.numel() * parameter.requires_grad, tokens)
    return flops


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak so far: what torch held on a GPU, else what the process held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
