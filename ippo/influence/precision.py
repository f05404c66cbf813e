"""In what precision a module really computes: its parameters' types do not tell, since it may cast on its way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ippo.errors import require

HALF = (torch.bfloat16, torch.float16)


class WatchPrecision(TorchFunctionMode):
    """While active, notes whether anything is computed in half precision.

    Attributes:
        half: what was first, by its type; None so far.
    """

    half: torch.dtype | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.half is None and isinstance(result, Tensor) and result.dtype in HALF:
            self.half = result.dtype
        return result


def require_full_precision(half: torch.dtype | None, argument: str, value: object) -> None:
    """Refuse differences of nearly equal numbers where these are rounded to half precision: what is left is noise.

    Raises:
        UsageError: unless ``half`` is None.
    """
    remedy = f"it takes differences, which {half} rounds away: compute in float32, or use ExactScorer('auto')"
    require(half is None, argument, value, remedy)


def half_of(module: nn.Module) -> torch.dtype | None:
    """The half precision that any parameter is kept in, trainable or not."""
    return next((parameter.dtype for parameter in module.parameters() if parameter.dtype in HALF), None)
