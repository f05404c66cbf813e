"""Which parameters are scored."""

from __future__ import annotations

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
