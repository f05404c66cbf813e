"""What is too coarse to train in, refused before the first rollout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ippo.errors import require


def require_precision(precision: str | int | None, groups: Mapping[str, Sequence[Tensor]]) -> None:
    """Refuse a loss scaler, and weights in half precision.

    Args:
        precision: of the trainer.
        groups: trained parameters, by name.

    Raises:
        UsageError: if the trainer scales losses, or a parameter has less than float32 precision.
    """
    remedy = "its loss scaler would have to see gradients before they are clipped and checked: use bf16-mixed"
    require(precision != "16-mixed", "trainer.precision", precision, remedy)
    remedy = "small steps are lost in it: load the model in torch.float32; trainer.precision=bf16-mixed saves time"
    for name, parameters in groups.items():
        found = {str(one.dtype) for one in parameters if one.dtype not in (torch.float32, torch.float64)}
        require(not found, name, ", ".join(found), remedy)
