"""Scores on a GPU against one backward an episode on the CPU. Left out where there is none."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, losses, roll_out
from test_architectures import EXACT_PAIRS, make_case

from ippo.influence import ExactScorer, ValidationDirection
from ippo.sft import demonstration_loss

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize(("backend", "name"), EXACT_PAIRS)
def test_scores_are_those_of_one_backward_an_episode(backend: Any, name: str) -> None:
    case = make_case(name)
    policy, direction = (
        copy.deepcopy(case.policy).to(DEVICE),
        {key: d.to(DEVICE) for key, d in case.direction.items()},
    )
    scores = ExactScorer(backend).score(policy, losses, [case.rollout.to(DEVICE)], direction)
    assert scores.device.type == DEVICE
    assert (scores.cpu() - case.expected).abs().max() <= 1e-4 * case.expected.abs().max()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_direction_is_that_of_the_cpu(name: str) -> None:
    policy: Any = make_case(name).policy
    gold = roll_out(policy, [3, 2], [4, 5])
    expected = ValidationDirection([gold], demonstration_loss).compute(policy)
    there = ValidationDirection([gold.to(DEVICE)], demonstration_loss).compute(copy.deepcopy(policy).to(DEVICE))
    for key, value in expected.items():
        torch.testing.assert_close(there[key].cpu(), value, rtol=1e-3, atol=1e-4 * float(value.abs().max()) + 1e-7)
