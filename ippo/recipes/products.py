"""How exact float32 products are: TF32 on GPUs that have it, and what that changes, said."""

from __future__ import annotations

from typing import Any, Literal

import lightning as L
import torch
from rich.console import Console

from ippo.rollout.soundness import few_tokens, read

Products = Literal["auto", "highest", "high", "medium"]


def float32_products(asked: Products) -> str:
    """What ``torch.set_float32_matmul_precision`` is to be: ``"auto"`` is ``"high"`` on a GPU with TF32 (Ampere and
    later), and else ``"highest"``.

    Example:
        >>> float32_products("medium")
        'medium'
    """
    if asked != "auto":
        return asked
    has = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    return "high" if has else "highest"


class SayProducts(L.Callback):
    """Says once, when training begins on its device, what rounded products change of the policy's log-probabilities.

    Args:
        console: where to print.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if torch.get_float32_matmul_precision() != "highest":
            self.console.print(
                f"Rounded float32 products move the policy's log-probabilities by up to "
                f"{products_error(pl_module.model.policy):.1e} nats on a few tokens; what they do to scores: "
                "benchmarks/gpu.py --sections tf32."
            )


def products_error(policy: Any) -> float:
    """The largest change of a log-probability, in nats, that float32 products as they are set make of exact ones, of a
    few tokens and the whole vocabulary; outside of mixed precision.

    Args:
        policy: a causal language model.
    """
    ids, mask = few_tokens(policy)
    chosen = torch.get_float32_matmul_precision()
    try:
        with torch.autocast(ids.device.type, enabled=False):
            rounded = read(policy, ids, mask).float().log_softmax(-1)
            torch.set_float32_matmul_precision("highest")
            exact = read(policy, ids, mask).float().log_softmax(-1)
    finally:
        torch.set_float32_matmul_precision(chosen)
    return float((rounded - exact).abs().max())
