"""The gold problems of a training, as one rank sees them."""

from __future__ import annotations

from typing import Any

import torch

from ippo.data.demonstrations import encode_demonstrations
from ippo.data.task import Columns, columns
from ippo.distributed import rank, world_size
from ippo.errors import require
from ippo.models.configuration import context_length
from ippo.rollout.sequences import Sequences


def gold_share(module: Any) -> Sequences:
    """This rank's share of the gold solutions, on the module's device.

    Args:
        module: a :class:`ippo.PPOModule` in its trainer.

    Raises:
        UsageError: if the trainer knows no gold solutions.
    """
    context = context_length(module.model.policy)
    gold = encode_demonstrations(module.tokenizer, prompt_data(module).gold, context, "gold", module.ends.closing)
    return gold.rows(torch.arange(rank(), len(gold), world_size())).to(module.device)


def gold_problems(module: Any) -> Columns:
    """This rank's share of as many gold problems as an iteration has prompts, to be answered.

    Args:
        module: as above.

    Raises:
        UsageError: if there is not one for each rank.
    """
    data = prompt_data(module)
    rows = list(data.gold)[: data.options.prompts_per_iteration]
    require(len(rows) >= world_size(), "task.gold", len(rows), f"give each of the {world_size()} ranks a problem")
    return columns(rows[rank() :: world_size()])


def prompt_data(module: Any) -> Any:
    """The data module that knows the gold solutions.

    Raises:
        UsageError: if the trainer has none that does.
    """
    data = getattr(module.trainer, "datamodule", None)
    remedy = "the gold solutions come from it: fit with a PromptDataModule, or give the filter a direction of its own"
    require(hasattr(data, "gold"), "datamodule", type(data).__name__, remedy)
    return data
