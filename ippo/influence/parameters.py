"""Which parameters are scored, and the state a module must be in meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ippo.errors import require


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name; a tied one appears once.

    Raises:
        UsageError: if there is none.
    """
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    require(
        bool(parameters), "module", type(module).__name__, "it has no trainable parameter: call requires_grad_(True)"
    )
    return parameters


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for every submodule, and afterwards each one's own mode again."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
