"""From one rank's scores to a selection that all ranks share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ippo.callbacks.influence.batch_rows import column
from ippo.distributed import gather
from ippo.errors import require
from ippo.influence import KeepRule, Selection, WeightRule, select_episodes


def select_together(
    scores: Tensor,
    batch: Any,
    keep: KeepRule,
    weight: WeightRule,
    before: Tensor | None = None,
    features: Tensor | None = None,
) -> tuple[Selection, slice]:
    """The selection on the rows of all ranks, and where this rank's own are among them.

    Args:
        scores: [n] of this rank's rows.
        batch: the rows, whose ``rewards`` or ``groups`` go to the rules that read them.
        keep, weight: the rules.
        before: [n] the weights that the rows come with; None for 1 each.
        features: [n, d] for a keep rule that reads them; None takes the rows' own.

    Raises:
        UsageError: if a rule reads what the rows do not have.

    Example:
        >>> from ippo.influence import PositiveScore, Uniform
        >>> selection, own = select_together(torch.tensor([0.5, -0.5]), {}, PositiveScore(), Uniform())
        >>> selection.kept, own
        (tensor([ True, False]), slice(0, 2, None))
    """
    columns = {"rewards": torch.zeros_like(scores), "groups": torch.arange(len(scores), device=scores.device)}
    readers = [(option, rule, name) for option, rule in (("keep", keep), ("weight", weight)) for name in rule.reads]
    for option, rule, name in [one for one in readers if one[2] in columns]:
        values, found = column(batch, name), type(rule).__name__
        require(values is not None, option, found, f"it reads {name}, but what it judges has no entry of that name")
        columns[name] = torch.as_tensor(values, device=scores.device)
    if "features" in keep.reads:
        features = column(batch, "features") if features is None else features
        remedy = "it reads features, [n, d] a row, but what it judges has no entry of that name"
        require(features is not None, "keep", type(keep).__name__, remedy)
        features = gather(torch.as_tensor(features, device=scores.device).contiguous())[0]
    else:
        features = None
    before = None if before is None else gather(before.to(scores))[0]
    rewards, groups = gather(columns["rewards"])[0], gather(columns["groups"])[0]
    scores, own = gather(scores)
    return select_episodes(scores, rewards, groups, keep, weight, before, features), own


def with_floor(selection: Selection, own: slice, floor: int) -> Selection:
    """The selection with so many of this rank's rows kept at least, where any of them is: the highest of the other
    scores fill up. Batch norm takes its statistics over the rows, and one row has none.

    Example:
        >>> from ippo.influence import PositiveScore, Uniform
        >>> selection, own = select_together(torch.tensor([0.5, -0.5, -0.1]), {}, PositiveScore(), Uniform())
        >>> with_floor(selection, own, 2).kept
        tensor([ True, False,  True])
    """
    if floor == 1:
        return selection
    kept = selection.kept[own].clone()
    missing = floor - int(kept.sum())
    if 0 < missing < floor:
        others = (~kept & selection.scores[own].isfinite()).nonzero().flatten()
        kept[others[selection.scores[own][others].argsort(descending=True)[:missing]]] = True
    kept, _ = gather(kept)
    reasons = ["" if stays else reason for stays, reason in zip(kept.tolist(), selection.reasons, strict=True)]
    return replace(selection, kept=kept, weights=kept.to(selection.weights), reasons=reasons)
