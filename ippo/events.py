"""The seam between PPO and everything that is added to it."""

from __future__ import annotations

from typing import TypeVar

import lightning as L
from torch.utils.data import get_worker_info

from ippo.errors import require

Buffer = TypeVar("Buffer")


def emit(trainer: L.Trainer, module: L.LightningModule, event: str, episodes: Buffer) -> Buffer:
    """Let every callback that knows ``event`` look at the episodes and return others in their place.

    Callbacks are asked in the trainer's order, each with what the one before returned; one that returns None leaves the
    episodes as they are. A plain loop, called from inside ``training_step``, so that callbacks may use ``module.log``.

    Events of :class:`ippo.PPOModule`: ``on_logprob_pass`` (before log-probabilities are taken; it passes a
    :class:`ippo.ppo.logprobs.LogprobPass`), ``on_rollout_end`` (filter here), then ``on_update_start`` (look, do not
    touch), and ``on_step_skipped`` with the minibatch whose gradient was not finite; in validation and test
    ``on_answers``, with the columns of the judged answers. Of a filter, whatever the module: ``on_scored``, with a
    :class:`ippo.callbacks.influence.scored.Scored` of what it has judged, before any of it leaves.

    Args:
        trainer: the running trainer.
        module: the module that rolled out.
        event: the callback method to call, as ``method(trainer, module, episodes)``.
        episodes: the rollout buffer.

    Example: in an existing project's ``training_step``::

        episodes = emit(self.trainer, self, "on_rollout_end", episodes)
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        method = getattr(callback, event, None)
        if method is not None:
            returned = method(trainer, module, episodes)
            episodes = episodes if returned is None else returned
    return episodes


def require_logging(module: L.LightningModule) -> None:
    """Refuse episodes that come from outside of the training step, as from a data loader that rolls out.

    Nothing can be logged there, the trainer may not have started, and with workers it is another process.

    Raises:
        UsageError: if so.
    """
    hook = module._current_fx_name  # what Lightning's own log asks, though it has no public name
    inside = hook == "training_step" or (hook or "").startswith(("on_train_batch", "on_train_epoch"))
    remedy = "emit inside training_step, or filter the batches that the loader yields with unit='batch'"
    require(inside and get_worker_info() is None, "emit", f"in {hook or 'a data loader'}", remedy)
