"""The layout ``shared``: the critic is a head on the policy's own trunk."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ippo.models.actor_critic import Layout, ValueHead
from ippo.models.configuration import state_size
from ippo.models.requirements import require_language_model
from ippo.models.responses import states_before
from ippo.models.trunk import trunk_of
from ippo.rollout.sequences import Sequences
from ippo.rollout.sharded import inside


class SharedModels(Layout):
    """Two models of the policy's size instead of three: the policy, with a value head on its trunk, and the reference.

    It saves memory; the trunk still runs once for the log-probabilities and once for the values.

    Args:
        policy: a causal language model, usually after its supervised warm start.
        value_gradient: whether the value loss trains the trunk, too. Its gradient joins the policy's group: rate and
            clipping of the policy hold for it. Otherwise the head is all that learns to value, at the cost of a
            forward pass without a graph.
        critic, reference: see :class:`ippo.models.SeparateModels`.
    """

    def __init__(
        self, policy: PreTrainedModel, value_gradient: bool = False, critic: bool = True, reference: bool = True
    ) -> None:
        require_language_model(policy)
        head = ValueHead(state_size(policy)) if critic else None
        super().__init__(policy, head, copy.deepcopy(policy) if reference else None)
        self.value_gradient = value_gradient

    def values(self, sequences: Sequences) -> Tensor:
        """[n, t] value of the state before each response token."""
        with torch.set_grad_enabled(self.value_gradient and torch.is_grad_enabled()):
            assert self.value is not None
            states = inside(self.policy, states_before, trunk_of(self.policy), sequences)
        return self.value(states)
