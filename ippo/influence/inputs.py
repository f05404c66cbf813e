"""What is asked of the losses and the direction that people pass: checked in one place, which says what to write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from ippo.errors import require

_ONE_A_ROW = 'return one loss for each episode, [n]; leave the mean over episodes out, as with reduction="none"'


def check_losses(values: Any, argument: str = "losses", depends: bool | None = None) -> None:
    """Refuse what is not one finite loss an episode, with a gradient.

    Args:
        values: what the losses gave.
        argument: what the user calls them.
        depends: whether they depend on a scored parameter; None asks their graph.

    Raises:
        UsageError: if ``values`` is not [n], holds NaN or Inf, or has no gradient.
    """
    check_rows(values, argument, depends)
    broken = (~values.detach().isfinite()).nonzero().flatten().tolist()
    found = f"NaN or Inf in {len(broken)} of {len(values)} episodes, the first in row {broken[:1]}"
    require(not broken, argument, found, "leave such episodes out before scoring: no gradient of theirs means anything")


def check_rows(values: Any, argument: str = "losses", depends: bool | None = None) -> None:
    """The same, of losses that need not be finite. Zeros, as of rows without a target, may be constants."""
    check_tensor(values, argument)
    require(values.dim() == 1, argument, f"a result of shape {tuple(values.shape)}", _ONE_A_ROW)
    remedy = "no scored parameter is in their graph: leave no_grad, inference_mode and detach out, or see `parameters`"
    known = values.requires_grad if depends is None else depends
    require(known or not bool(values.any()), argument, "a result without a gradient", remedy)


def check_tensor(values: Any, argument: str = "losses") -> None:
    """Refuse lists and numbers."""
    require(isinstance(values, Tensor), argument, f"a result of type {type(values).__name__}", _ONE_A_ROW)


def check_direction(direction: Any) -> None:
    """Refuse what is no direction: neither a mapping of gradients, nor able to compute one.

    Raises:
        UsageError: with what to write.
    """
    kind = direction.__name__ if isinstance(direction, type) else f"a {type(direction).__name__}"
    fits = not isinstance(direction, type) and (
        isinstance(direction, Mapping) or callable(getattr(direction, "compute", None))
    )
    remedy = (
        "write ValidationDirection(batches, loss): rows that you trust, and a function that gives one loss for each"
    )
    require(fits, "direction", kind, remedy)


def check_gold(batches: Any, loss: Any) -> None:
    """Refuse batches that cannot be read again and again, and a loss that is no function.

    Raises:
        UsageError: with what to write.
    """
    function = callable(loss) and not isinstance(loss, nn.modules.loss._Loss)
    remedy = "pass a function of (module, batch) that gives one loss for each row, [n]"
    require(function, "ValidationDirection.loss", f"a {type(loss).__name__}", remedy)
    found, argument = f"a {type(batches).__name__}", "ValidationDirection.batches"
    rows = isinstance(batches, Dataset) and not isinstance(batches, IterableDataset)
    require(not rows, argument, found, "it holds rows: wrap it, DataLoader(rows, batch_size=32)")
    again = isinstance(batches, Iterable) and not isinstance(batches, Iterator)
    require(again, argument, found, "they are read at each direction: pass a DataLoader or a list of batches")
