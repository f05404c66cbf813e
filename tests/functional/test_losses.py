from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from ippo.functional import (
    KLEstimator,
    aggregate,
    clip_fraction,
    entropy_loss,
    kl,
    kl_loss,
    policy_loss,
    sft_loss,
    value_loss,
)

NAN = float("nan")

# Every loss with the number of [n, t] tensors it takes before the mask; the first one is differentiated.
LOSSES: dict[str, tuple[Callable[..., Tensor], int]] = {
    "aggregate": (aggregate, 1),
    "policy": (policy_loss, 3),
    "policy, dual clip": (partial(policy_loss, dual_clip=1.5), 3),
    "value": (value_loss, 3),
    "value, unclipped": (partial(value_loss, clip=None), 3),
    "kl, k1": (partial(kl_loss, estimator="k1"), 2),
    "kl, k2": (partial(kl_loss, estimator="k2"), 2),
    "kl, k3": (partial(kl_loss, estimator="k3"), 2),
    "entropy": (entropy_loss, 1),
    "sft": (sft_loss, 1),
}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("loss", "arity"), LOSSES.values(), ids=LOSSES)
def test_padding_never_counts(loss: Callable[..., Tensor], arity: int, reduction: str) -> None:
    torch.manual_seed(0)
    lengths, width = [3, 1, 0], 4
    mask = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
    tensors = [torch.randn(3, width) for _ in range(arity)]
    padded = [tensor.where(mask, NAN) for tensor in tensors]
    padded[0].requires_grad_()

    with torch.autograd.set_detect_anomaly(True):  # not even an intermediate gradient may be NaN
        losses = loss(*padded, mask, reduction=reduction)
        (gradient,) = torch.autograd.grad(losses.sum(), padded[0])

    for row, length in enumerate(lengths):
        cut = [tensor[row : row + 1, :length].clone().requires_grad_() for tensor in tensors]
        alone = loss(*cut, torch.ones(1, length), reduction=reduction)
        torch.testing.assert_close(losses[row : row + 1], alone)
        torch.testing.assert_close(gradient[row : row + 1, :length], torch.autograd.grad(alone, cut[0])[0])
    assert losses[2] == 0.0
    assert (gradient[~mask] == 0.0).all()


@pytest.mark.parametrize(("loss", "arity"), LOSSES.values(), ids=LOSSES)
def test_forward_mode_agrees_with_reverse_mode(loss: Callable[..., Tensor], arity: int) -> None:
    torch.manual_seed(1)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    first, *rest = (torch.randn(2, 4, dtype=torch.float64) for _ in range(arity))
    tangent = torch.randn_like(first)

    def losses(tensor: Tensor) -> Tensor:
        return loss(tensor, *rest, mask)

    directional = torch.func.jvp(losses, (first,), (tangent,))[1]
    jacobian = torch.func.jacrev(losses)(first)
    torch.testing.assert_close(directional, torch.einsum("nit,it->n", jacobian, tangent))


def test_aggregate_refuses_an_unknown_reduction() -> None:
    with pytest.raises(ValueError, match=r"reduction must be .* got 'max'"):
        aggregate(torch.zeros(1, 1), torch.ones(1, 1), reduction="max")  # type: ignore[arg-type]


class TestPolicyLoss:
    RATIOS = (0.5, 0.9, 1.1, 2.0)

    def losses(self, advantage: float, **options: Any) -> list[float]:
        """The loss at each ratio, one token an episode."""
        logprobs = torch.tensor(self.RATIOS, dtype=torch.float64).log().unsqueeze(1)
        constant = torch.ones_like(logprobs)
        losses = policy_loss(logprobs, 0 * constant, advantage * constant, constant, **options)
        return [loss.item() for loss in losses]

    def test_positive_advantage_is_clipped_above(self) -> None:
        assert self.losses(2.0) == pytest.approx([-1.0, -1.8, -2.2, -2 * 1.2])

    def test_negative_advantage_is_clipped_below(self) -> None:
        assert self.losses(-2.0) == pytest.approx([2 * 0.8, 1.8, 2.2, 4.0])

    def test_clips_are_separate(self) -> None:
        assert self.losses(2.0, clip_low=0.4, clip_high=0.5) == pytest.approx([-1.0, -1.8, -2.2, -3.0])
        assert self.losses(-2.0, clip_low=0.4, clip_high=0.5) == pytest.approx([1.2, 1.8, 2.2, 4.0])

    def test_dual_clip_bounds_the_loss_of_negative_advantages_only(self) -> None:
        assert self.losses(-2.0, dual_clip=1.5) == pytest.approx([1.6, 1.8, 2.2, 3.0])
        assert self.losses(2.0, dual_clip=1.5) == self.losses(2.0)

    @pytest.mark.parametrize("dual_clip", [None, 3.0])
    @pytest.mark.parametrize("clip", [0.2, 0.0])
    def test_gradient_at_ratio_one_is_minus_the_advantage(self, dual_clip: float | None, clip: float) -> None:
        logprobs = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, -0.1, -7.0]], requires_grad=True)
        advantages = torch.tensor([[1.5, -2.0, 0.0], [-0.5, 4.0, 9.0]])
        mask = torch.tensor([[1, 1, 1], [1, 1, 0]])

        losses = policy_loss(logprobs, logprobs.detach(), advantages, mask, clip, clip, dual_clip, "sum")
        losses.sum().backward()

        assert logprobs.grad is not None
        assert logprobs.grad.tolist() == [[-1.5, 2.0, 0.0], [0.5, -4.0, 0.0]]

    def test_no_gradient_where_clipped(self) -> None:
        logprobs = torch.tensor([[2.0, 0.5, 2.0, 0.5]]).log().requires_grad_()
        advantages = torch.tensor([[1.0, -1.0, -1.0, 1.0]])  # the first two have gone far enough
        policy_loss(logprobs, torch.zeros(1, 4), advantages, torch.ones(1, 4), reduction="sum").backward()
        assert logprobs.grad is not None
        torch.testing.assert_close(logprobs.grad, torch.tensor([[0.0, 0.0, 2.0, -0.5]]))  # -A * ratio

    def test_refuses_options_out_of_range(self) -> None:
        token = torch.ones(1, 1)
        with pytest.raises(ValueError, match=r"got clip_low=-0\.1"):
            policy_loss(token, token, token, token, clip_low=-0.1)
        with pytest.raises(ValueError, match=r"dual_clip must be above 1, .* got 1\.0"):
            policy_loss(token, token, token, token, dual_clip=1.0)
        with pytest.raises(ValueError, match=r"advantages must have shape \[n=1, t=1\], got \[1\]"):
            policy_loss(token, token, torch.ones(1), token)


def test_clip_fraction_counts_response_tokens_outside() -> None:
    ratios = torch.tensor([[0.7, 0.85, 1.25, NAN], [1.3, 1.0, 1.0, 1.0], [NAN, NAN, NAN, NAN]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    old = torch.zeros(3, 4)
    torch.testing.assert_close(clip_fraction(ratios.log(), old, mask), torch.tensor([2 / 3, 1 / 4, 0.0]))
    wide = clip_fraction(ratios.log(), old, mask, clip_low=0.1, clip_high=0.28)
    torch.testing.assert_close(wide, torch.tensor([2 / 3, 1 / 4, 0.0]))  # .7 and .85; 1.3
    low = clip_fraction(ratios.log(), old, mask, clip_low=0.4)
    torch.testing.assert_close(low, torch.tensor([1 / 3, 1 / 4, 0.0]))  # 1.25; 1.3


class TestValueLoss:
    def test_hand_worked(self) -> None:
        # moves of +1, +.1, -1 from old value 0, each clipped at .2, towards the return 2, 2, 2
        values, old_values = torch.tensor([[1.0, 0.1, -1.0]]), torch.zeros(1, 3)
        losses = value_loss(values, old_values, torch.full((1, 3), 2.0), torch.ones(1, 3), reduction="sum")
        # max(1, 1.8 ** 2), max(1.9 ** 2, 1.9 ** 2), max(3 ** 2, 2.2 ** 2), halved
        torch.testing.assert_close(losses, torch.tensor([(3.24 + 3.61 + 9.0) / 2]))

    def test_without_clip_the_old_value_is_not_read(self) -> None:
        values, old_values = torch.tensor([[1.0, 4.0]]), torch.full((1, 2), NAN)
        losses = value_loss(values, old_values, torch.zeros(1, 2), torch.ones(1, 2), clip=None)
        assert losses.tolist() == [(1 + 16) / 2 / 2]

    def test_a_value_that_has_not_moved_has_its_whole_gradient_whatever_the_clip(self) -> None:
        values = torch.tensor([[1.0]], requires_grad=True)
        value_loss(values, torch.tensor([[1.0]]), torch.tensor([[3.0]]), torch.ones(1, 1), clip=0.0).backward()
        assert values.grad is not None
        assert values.grad.item() == -2.0

    def test_no_gradient_beyond_the_clip(self) -> None:
        values = torch.tensor([[1.0, -1.0]], requires_grad=True)  # towards the return; away from it
        old_values, returns = torch.zeros(1, 2), torch.full((1, 2), 2.0)
        value_loss(values, old_values, returns, torch.ones(1, 2), reduction="sum").backward()
        assert values.grad is not None
        assert values.grad.tolist() == [[0.0, -3.0]]

    def test_refuses_a_negative_clip(self) -> None:
        token = torch.ones(1, 1)
        with pytest.raises(ValueError, match=r"clip must not be negative.* got -1"):
            value_loss(token, token, token, token, clip=-1)


class TestKL:
    POLICY = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    REFERENCE = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)

    def expect(self, values: Tensor) -> float:
        """The mean over tokens drawn from the policy, exactly."""
        return (self.POLICY * values).sum().item()

    @pytest.mark.parametrize("estimator", ["k1", "k3"])
    def test_unbiased(self, estimator: KLEstimator) -> None:
        divergence = (self.POLICY * (self.POLICY / self.REFERENCE).log()).sum().item()
        estimates = kl(self.POLICY.log()[None], self.REFERENCE.log()[None], estimator)[0]
        assert self.expect(estimates) == pytest.approx(divergence)

    def test_k2_and_k3_are_never_negative_but_k1_is(self) -> None:
        logprobs, ref_logprobs = self.POLICY.log()[None], self.REFERENCE.log()[None]
        assert kl(logprobs, ref_logprobs, "k1").min() < 0
        assert kl(logprobs, ref_logprobs, "k2").min() > 0
        assert kl(logprobs, ref_logprobs, "k3").min() > 0

    @pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
    def test_mean_gradient_is_the_one_documented(self, estimator: KLEstimator) -> None:
        logits = self.POLICY.log().requires_grad_()
        log_policy, log_reference = logits.log_softmax(dim=0), self.REFERENCE.log()
        divergence = {
            "k1": 0 * logits.sum(),
            "k2": (log_policy.exp() * (log_policy - log_reference)).sum(),
            "k3": (self.REFERENCE * (log_reference - log_policy)).sum(),
        }[estimator]
        (expected,) = torch.autograd.grad(divergence, logits, retain_graph=True)

        estimates = kl(log_policy[None], log_reference[None], estimator)[0]
        (gradient,) = torch.autograd.grad((self.POLICY * estimates).sum(), logits)

        torch.testing.assert_close(gradient, expected)

    def test_k3_keeps_its_digits_near_the_reference(self) -> None:
        estimate = kl(torch.tensor([[1e-3]]), torch.zeros(1, 1), "k3").item()
        assert estimate == pytest.approx(0.5e-6 - 1e-9 / 6, rel=1e-3)  # x^2 / 2 - x^3 / 6

    def test_refuses_an_unknown_estimator(self) -> None:
        with pytest.raises(ValueError, match=r"estimator must be .* got 'k4'"):
            kl(torch.zeros(1, 1), torch.zeros(1, 1), "k4")  # type: ignore[arg-type]

    def test_loss_is_the_mean_over_response_tokens(self) -> None:
        logprobs, mask = torch.tensor([[2.0, 4.0, 9.0]]), torch.tensor([[1, 1, 0]])
        assert kl_loss(logprobs, torch.zeros(1, 3), mask, "k2").item() == (2.0 + 8.0) / 2


def test_entropy_and_sft_losses_are_negative_means() -> None:
    values, mask = torch.tensor([[1.0, 3.0, 8.0]]), torch.tensor([[1, 1, 0]])
    assert entropy_loss(values, mask).tolist() == [-2.0]
    assert entropy_loss(values, mask, "sum").tolist() == [-4.0]
    assert sft_loss(-values, mask).tolist() == [2.0]
    assert sft_loss(-values, mask, "sum").tolist() == [4.0]


class TestOverflow:
    """exp(89) is infinite in float32: its product with 0 is NaN, and so is its gradient where the clip wins."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
    @pytest.mark.parametrize("log_ratio", [-1000.0, -100.0, 100.0, 1000.0])
    def test_no_ratio_makes_the_policy_loss_or_its_gradient_infinite(
        self, log_ratio: float, advantage: float, dtype: torch.dtype
    ) -> None:
        logprobs = torch.tensor([[log_ratio]], dtype=dtype, requires_grad=True)
        zero = torch.zeros(1, 1, dtype=dtype)
        loss = policy_loss(logprobs, zero, zero + advantage, torch.ones(1, 1))
        (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(gradient).all()
        if advantage == 0.0:
            assert loss.item() == 0.0
        if advantage > 0 and log_ratio > 0:
            assert loss.item() == pytest.approx(-1.2)  # clipped, as at any ratio above 1.2

    def test_the_k3_penalty_stays_finite(self) -> None:
        logprobs = torch.tensor([[-100.0, 100.0]], requires_grad=True)
        loss = kl_loss(logprobs, torch.zeros(1, 2), torch.ones(1, 2), "k3", "sum")
        (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
        assert loss.item() == pytest.approx(math.exp(20) - 1 - 20 + 99, rel=1e-6)
        assert gradient.tolist() == [[0.0, 1.0]]

    def test_below_the_limit_nothing_changes_by_a_bit(self) -> None:
        torch.manual_seed(0)
        logprobs, old, advantages = 5 * torch.randn(64, 9), 5 * torch.randn(64, 9), torch.randn(64, 9)
        logprobs.requires_grad_()
        mask = torch.arange(9) < torch.randint(10, (64, 1))
        found = policy_loss(logprobs, old, advantages, mask, reduction="sum")
        ratio = (logprobs - old).masked_fill(~mask, 0.0).exp()
        advantages = advantages.masked_fill(~mask, 0.0)
        surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
        expected = (-surrogate).masked_fill(~mask, 0.0).sum(1)
        assert torch.equal(found, expected)
        gradients = [torch.autograd.grad(loss.sum(), logprobs)[0] for loss in (found, expected)]
        assert torch.equal(*gradients)


def test_a_mask_with_holes_counts_the_tokens_it_marks() -> None:
    values, mask = torch.tensor([[9.0, 1.0, 9.0, 3.0]]), torch.tensor([[0, 1, 0, 1]])
    assert aggregate(values, mask).tolist() == [2.0]
    assert sft_loss(values, mask, "sum").tolist() == [-4.0]
