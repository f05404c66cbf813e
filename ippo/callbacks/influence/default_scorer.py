"""What a filter scores by unless it is told otherwise."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from ippo.errors import UsageError
from ippo.influence import ExactScorer
from ippo.influence.parameters import choose


def default_scorer(module: nn.Module) -> ExactScorer:
    """Exact scores of the last block of a language model, or of any model of Hugging Face inside the module, and of
    what follows it; of all parameters where there is none, since a list of modules may be anything then.

    Example:
        >>> default_scorer(nn.Linear(1, 1)).parameters is None
        True
    """
    known = any(isinstance(part, PreTrainedModel) for part in module.modules())
    try:
        return ExactScorer(parameters=1 if known and choose(module, 1) else None)
    except UsageError:  # it has no list of blocks
        return ExactScorer()
