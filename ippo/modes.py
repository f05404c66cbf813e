"""The mode a module must be in while it is only looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(module: nn.Module, checkpointing: bool = False) -> Iterator[None]:
    """Dropout off in every submodule, and afterwards each one's own mode again.

    Args:
        module: what is looked at.
        checkpointing: whether layers that are to checkpoint their activations do so; Hugging Face's do it in training
            mode alone, so their own flag stays there, while what they hold is in evaluation mode.
    """
    modes = {part: part.training for part in module.modules()}
    if any(modes.values()):
        module.eval()
    for part in modes if checkpointing else ():
        part.training = bool(getattr(part, "gradient_checkpointing", False))
    try:
        yield
    finally:
        for part, mode in modes.items():
            if part.training != mode:
                part.training = mode
