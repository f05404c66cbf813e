"""Another objective goes in at one place: it is what is trained, and what is scored."""

from __future__ import annotations

import pytest
import torch
from parts import Gradients, MakeModule, MakeTrainer, Recorder, Replay
from torch import Tensor

from ippo import Episodes, PPOModule, PromptDataModule
from ippo.callbacks import InfluenceFilterCallback
from ippo.functional import aggregate
from ippo.influence import ExactScorer
from ippo.ppo.objective import PolicyObjective


class Reinforce(PolicyObjective):
    """Without ratio and clip."""

    def of_logprobs(self, logprobs: Tensor, episodes: Episodes) -> Tensor:
        return aggregate(-logprobs * episodes.advantages, episodes.response_mask, self.ppo.reduction)


def losses_by_hand(module: PPOModule, episodes: Episodes) -> Tensor:
    """[n]"""
    policy, real = module.model.policy, episodes.response_mask.float()
    logits = policy(input_ids=episodes.input_ids, attention_mask=episodes.attention_mask).logits
    logprobs = logits[:, episodes.prompt_ids.shape[1] - 1 : -1].log_softmax(-1)
    logprobs = logprobs.gather(-1, episodes.response_ids.unsqueeze(-1)).squeeze(-1)
    return -(logprobs * episodes.advantages * real).sum(1) / real.sum(1)


def far(found: list[Tensor], expected: list[Tensor]) -> float:
    difference = torch.cat([(one - other).flatten() for one, other in zip(found, expected, strict=True)])
    return float(difference.norm() / torch.cat([one.flatten() for one in expected]).norm())


def test_it_is_what_is_trained(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, rollout: Episodes, shifted: PPOModule
) -> None:
    steps = {}
    for objective in (Reinforce, PolicyObjective):
        gradients = Gradients()
        alone = {"minibatch_size": 16, "max_grad_norm": 1e9, "kl_coef": 0.0}
        module = make_module(shifted.model.policy, objective=objective, **alone)
        make_trainer(Replay(rollout), gradients).fit(module, data)
        steps[objective] = list(gradients.steps[0].values())
    loss = losses_by_hand(shifted, rollout).mean()
    expected = torch.autograd.grad(loss, list(shifted.model.policy.parameters()))
    assert far(steps[Reinforce], list(expected)) < 1e-4
    assert far(steps[PolicyObjective], list(expected)) > 0.01  # its ratios are not 1


@pytest.mark.parametrize("one_pass", [True, False])
def test_it_is_what_is_scored(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, one_pass: bool
) -> None:
    module, recorder = make_module(objective=Reinforce), Recorder()
    direction = {name: torch.randn_like(one) for name, one in module.model.policy.named_parameters()}
    scores: list[Tensor] = []

    class Expected(Recorder):
        def on_rollout_end(self, trainer: object, pl_module: PPOModule, episodes: Episodes) -> None:
            parameters = list(pl_module.model.policy.parameters())
            with torch.enable_grad():
                losses = losses_by_hand(pl_module, episodes)
            for loss in losses:
                found = torch.autograd.grad(loss, parameters, retain_graph=True)
                pairs = zip(found, direction.values(), strict=True)
                scores.append(torch.stack([(one * other).sum() for one, other in pairs]).sum())

    callback = InfluenceFilterCallback(ExactScorer(), direction, dry_run=True, one_pass=one_pass)
    make_trainer(Expected(), callback, recorder, max_epochs=1).fit(module, data)
    found, expected = torch.tensor(recorder.episodes[0].extras["score"]), torch.stack(scores)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
