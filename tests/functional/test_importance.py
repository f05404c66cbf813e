"""What makes up for an engine that is not the policy, by hand."""

from __future__ import annotations

import pytest
import torch

from ippo.functional import engine_gaps, truncated_importance

# Three tokens and one of padding; ratios 3/2, 1/4 and 8, which a cap of 2 cuts.
POLICY = torch.tensor([[0.6, 0.1, 0.8, 0.5]]).log()
ENGINE = torch.tensor([[0.4, 0.4, 0.1, 0.5]]).log()
MASK = torch.tensor([[True, True, True, False]])


def test_weights_are_ratios_cut_at_the_cap() -> None:
    found = truncated_importance(POLICY, ENGINE, MASK)
    torch.testing.assert_close(found, torch.tensor([[1.5, 0.25, 2.0, 1.0]]))
    torch.testing.assert_close(truncated_importance(POLICY, ENGINE, MASK, cap=9.0)[0, 2], torch.tensor(8.0))


def test_gaps_are_distances_of_logarithms() -> None:
    found = engine_gaps(POLICY, ENGINE, MASK)
    torch.testing.assert_close(found, torch.tensor([[0.405465, 1.386294, 2.079442, 0.0]]))  # log 1.5, log 4, log 8


def test_a_mean_over_what_the_engine_drew_becomes_the_policys() -> None:
    policy, engine, worth = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.3, 0.3]), torch.tensor([1.0, -2.0, 5.0])
    weights = truncated_importance(policy.log()[None], engine.log()[None], torch.ones(1, 3))[0]
    torch.testing.assert_close((engine * weights * worth).sum(), (policy * worth).sum())


def test_what_lies_under_the_padding_does_not_count() -> None:
    broken = ENGINE.masked_fill(~MASK, float("nan"))
    assert truncated_importance(POLICY, broken, MASK).isfinite().all()
    assert engine_gaps(POLICY, broken, MASK)[0, 3] == 0


def test_a_token_that_the_engine_could_not_have_drawn_has_the_cap() -> None:
    impossible = torch.full((1, 1), -torch.inf)
    assert truncated_importance(torch.zeros(1, 1), impossible, torch.ones(1, 1)).item() == 2.0


def test_no_gradient_passes() -> None:
    assert not truncated_importance(POLICY.clone().requires_grad_(), ENGINE, MASK).requires_grad


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"engine_logprobs must have shape \[n=1, t=4\], got \[1, 3\]"):
        truncated_importance(POLICY, ENGINE[:, :3], MASK)
    with pytest.raises(ValueError, match="cap must be at least 1"):
        truncated_importance(POLICY, ENGINE, MASK, cap=0.5)
