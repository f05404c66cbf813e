"""The gold problems of a training, as one rank sees and learns them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from ippo.data.demonstrations import encode_demonstrations
from ippo.data.task import Columns, columns
from ippo.distributed import gather, no_sync, rank, world_size
from ippo.errors import require
from ippo.influence.directions import JudgedBy
from ippo.models.configuration import context_length
from ippo.rollout.episodes import Episodes
from ippo.rollout.sequences import Sequences
from ippo.rollout.sharded import as_many_calls
from ippo.sft import demonstration_loss


def gold_share(module: Any, use: Literal["training", "direction"]) -> Sequences:
    """This rank's share of the gold solutions that may be used so, on the module's device.

    Args:
        module: a :class:`ippo.PPOModule` in its trainer.
        use: see :func:`gold_places`.

    Raises:
        UsageError: if the trainer knows no gold solutions, or too few to be parted.
    """
    context = context_length(module.model.policy)
    gold = encode_demonstrations(module.tokenizer, prompt_data(module).gold, context, "task.gold", module.ends.closing)
    places = gold_places(len(gold), module.ppo.ptx_share, use)
    return gold.rows(torch.tensor(places[rank() :: world_size()], dtype=torch.long)).to(module.device)


def gold_places(count: int, ptx_share: float, use: Literal["training", "direction"]) -> range:
    """Which of the gold solutions are trained on, and which make the direction: all for both, or the first for the one
    and the others for the other, the same throughout a run.

    Args:
        count: of gold solutions.
        ptx_share: the share to train on.
        use: what for.

    Raises:
        UsageError: if one of the two is left without any.

    Example:
        >>> gold_places(6, 0.5, "training"), gold_places(6, 0.5, "direction"), gold_places(6, 1.0, "direction")
        (range(0, 3), range(3, 6), range(0, 6))
    """
    if ptx_share == 1:
        return range(count)
    cut = round(ptx_share * count)
    require(0 < cut < count, "ppo.ptx_share", ptx_share, f"of {count} gold solutions one part is empty: give more")
    return range(cut) if use == "training" else range(cut, count)


def mix_in_gold(module: Any, gold: Sequences, sums: dict[str, float]) -> None:
    """Add the gradient of the SFT loss of some gold solutions, drawn at random (PPO-ptx).

    Args:
        module: a :class:`ippo.PPOModule` in its trainer.
        gold: this rank's share, for training.
        sums: for the curves, to which the losses are added.
    """
    ppo, policy = module.ppo, module.model.policy
    rows = gold.rows(torch.randint(len(gold), (ppo.ptx_batch_size,)))
    with no_sync(module.trainer.strategy.model):
        chunks = rows.chunks(ppo.micro_batch_size, ppo.token_budget)
        for place, micro in enumerate(as_many_calls(policy, chunks, module.device)):
            loss = demonstration_loss(policy, micro).sum() * (place < len(chunks))
            module.manual_backward(module.ptx_coef * loss / len(rows))
            sums["ptx_loss"] += float(loss.detach())
    sums["ptx_rows"] += len(rows)


def gold_problems(module: Any) -> Columns:
    """This rank's share of as many gold problems as an iteration has prompts, to be answered.

    Args:
        module: as above.

    Raises:
        UsageError: if there is not one for each rank.
    """
    data = prompt_data(module)
    gold = list(data.gold)
    places = gold_places(len(gold), module.ppo.ptx_share, "direction")
    rows = [gold[place] for place in places[: data.options.prompts_per_iteration]]
    require(len(rows) >= world_size(), "task.gold", len(rows), f"give each of the {world_size()} ranks a problem")
    return columns(rows[rank() :: world_size()])


def answered_gold(module: Any, judged_by: JudgedBy) -> Episodes:
    """The policy's answers to :func:`gold_problems`; warns where those of all ranks earn the same, and so give no
    direction."""
    episodes: Episodes = module.roll_out(gold_problems(module), judged_by=judged_by)
    earned = gather(episodes.rewards)[0]
    if len(earned) and bool((earned == earned[0]).all()):
        rank_zero_warn(
            f"all {len(earned)} answers to the gold problems earn {float(earned[0]):g}, so that they give no "
            "direction: give gold problems that the policy can solve, and not always"
        )
    return episodes


def prompt_data(module: Any) -> Any:
    """The data module that knows the gold solutions.

    Raises:
        UsageError: if the trainer has none that does.
    """
    data = getattr(module.trainer, "datamodule", None)
    remedy = "the gold solutions come from it: fit with a PromptDataModule, or give the filter a direction of its own"
    require(hasattr(data, "gold"), "datamodule", type(data).__name__, remedy)
    return data
