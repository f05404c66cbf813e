"""The mode a module must be in while it is only looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Dropout off in every submodule, and afterwards each one's own mode again."""
    modes = {part: part.training for part in module.modules()}
    if any(modes.values()):
        module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            if part.training != mode:
                part.training = mode
