from __future__ import annotations

import pytest
import torch

from ippo.functional import preference_loss


def test_by_hand() -> None:
    chosen, rejected = torch.tensor([-1.0, -2.0]), torch.tensor([-4.0, -1.5])
    assert preference_loss(chosen, rejected).tolist() == [-3.0, 0.5]


def test_its_gradient_is_that_of_dpo_at_the_reference_but_for_half_of_beta() -> None:
    logits = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)  # a chosen and a rejected answer of 3 tokens
    answers = logits.log_softmax(-1)[..., 1].sum(1)
    h = answers - answers.detach()
    dpo = -torch.nn.functional.logsigmoid(0.3 * (h[:1] - h[1:])).sum()
    (expected,) = torch.autograd.grad(dpo, logits, retain_graph=True)
    (found,) = torch.autograd.grad(preference_loss(answers[:1], answers[1:]).sum(), logits)
    torch.testing.assert_close(0.15 * found, expected)


def test_what_both_answers_begin_with_cancels() -> None:
    start = torch.tensor([-1.0], requires_grad=True)
    chosen, rejected = start + torch.tensor([-2.0]), start + torch.tensor([-0.5])
    (gradient,) = torch.autograd.grad(preference_loss(chosen, rejected).sum(), start)
    assert gradient.tolist() == [0.0]


def test_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match="rejected"):
        preference_loss(torch.zeros(2), torch.zeros(3))
