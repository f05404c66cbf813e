"""Rules that ask how likely a reward is right."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from ippo.errors import UsageError
from ippo.functional import alignments, estimate_reward_errors, reward_posterior
from ippo.influence import KeepRule, LikelyRight, PositiveScore, Posterior, TopFraction, Uniform, select_episodes

ALL = TopFraction(1.0)


def buffer(n: int = 256, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, rewards and groups of a verifier that passes three of ten wrong answers and misses one of ten right ones;
    right answers agree with the gold solutions and have small gradients, wrong ones have large ones."""
    generator = torch.Generator().manual_seed(seed)
    right = torch.rand(n, generator=generator) < 0.5
    paid = torch.rand(n, generator=generator) < torch.where(right, 0.9, 0.3)
    noise = torch.randn(n, generator=generator)
    aligned = torch.where(right, 0.5 + 0.2 * noise, -0.2 + 1.5 * noise)
    return aligned * (paid.float() - paid.float().mean()), paid.float(), torch.arange(n) // 4


def belief(scores: Tensor, rewards: Tensor, rising: bool = True) -> Tensor:
    paid = rewards > 0.5
    aligned = alignments(scores, paid)
    return reward_posterior(aligned, paid, estimate_reward_errors(aligned, paid), rising=rising).float()


def test_weights_are_the_posterior_over_its_mean() -> None:
    scores, rewards, groups = buffer()
    found = select_episodes(scores, rewards, groups, ALL, Posterior())
    right = belief(scores, rewards)
    assert found.kept.all()
    assert found.weights.tolist() == pytest.approx((right / right.mean()).tolist())
    assert right.max() - right.min() > 0.3
    assert found.effective_sample_size < 0.97


def test_after_the_sign_only_what_stays_is_weighed_but_all_episodes_are_read() -> None:
    scores, rewards, groups = buffer()
    found = select_episodes(scores, rewards, groups, PositiveScore(), Posterior())
    right = belief(scores, rewards)[scores > 0]
    assert found.kept.tolist() == (scores > 0).tolist()
    assert found.weights[found.kept].tolist() == pytest.approx((right / right.mean()).tolist())


def test_the_expected_sign_leaves_out_what_is_as_likely_wrong() -> None:
    scores, rewards, groups = buffer()
    found = select_episodes(scores, rewards, groups, ALL, Posterior(expected_sign=True))
    right = belief(scores, rewards)
    assert (found.weights == 0).tolist() == (right <= 0.5).tolist()
    assert found.weights.mean().item() == pytest.approx(1.0)


def test_what_is_not_sure_keeps_its_weight() -> None:
    scores, rewards, groups = buffer()
    right = belief(scores, rewards)
    found = select_episodes(scores, rewards, groups, ALL, Posterior(sure=0.8)).weights
    unsure = right < 0.8
    assert 0 < unsure.sum() < len(right)
    assert len(found[unsure].unique()) == 1
    assert found[~unsure].max() < found[unsure].min()  # 1 is more than any probability


@pytest.mark.parametrize(
    ("options", "positive"),
    [
        ({"probability": 0.7}, False),
        ({"probability": 0.7, "positive": True}, True),
        ({"probability": 0.7, "rising": False}, False),
    ],
)
def test_likely_right_keeps_by_the_posterior(options: dict[str, Any], positive: bool) -> None:
    scores, rewards, groups = buffer()
    expected = belief(scores, rewards, options.get("rising", True)) >= options.get("probability", 0.5)
    found = LikelyRight(**options)(scores, rewards, groups)
    assert found.tolist() == (expected & (scores > 0) if positive else expected).tolist()
    assert 0.1 < found.float().mean() < 0.9


def test_a_prompt_that_is_always_paid_is_believed_more() -> None:
    scores, rewards, groups = buffer()
    rewarded = rewards > 0.5
    paid = torch.stack([rewarded[groups == group].float().mean() for group in groups])
    plain, by_prompt = (
        select_episodes(scores, rewards, groups, ALL, Posterior(prompt_strength=strength)).weights
        for strength in (None, 4.0)
    )
    assert (by_prompt / plain)[rewarded & (paid == 1)].mean() > (by_prompt / plain)[rewarded & (paid < 0.5)].mean()


FEW = (torch.tensor([0.3, -0.2, 0.1, 0.4]), torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([0, 0, 1, 1]))
ONE_CLASS = (torch.linspace(-1, 1, 128), torch.ones(128), torch.arange(128))
NO_GRADIENT = (torch.zeros(128), (torch.arange(128) % 2).float(), torch.arange(128))


@pytest.mark.parametrize("rows", [FEW, ONE_CLASS, NO_GRADIENT], ids=["few", "one class", "no gradient"])
def test_where_it_cannot_be_told_all_weigh_the_same_and_it_is_said_once(rows: tuple[Tensor, Tensor, Tensor]) -> None:
    rule = Posterior()
    with pytest.warns(UserWarning, match=r"are too few, of 32\. All weigh the same \(said once\)"):
        found = select_episodes(*rows, ALL, rule)
    assert (found.weights == 1).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        select_episodes(*rows, ALL, rule)


def test_where_it_cannot_be_told_the_sign_keeps() -> None:
    with pytest.warns(UserWarning, match="What scores above 0 stays"):
        assert LikelyRight()(*FEW).tolist() == [True, False, True, True]


def test_rewards_that_oppose_the_gold_solutions_are_not_believed() -> None:
    scores, rewards, groups = buffer()
    with pytest.warns(UserWarning, match="agrees with the gold solutions no more often than the rest"):
        found = select_episodes(-scores, rewards, groups, ALL, Posterior())
    assert (found.weights == 1).all()


def test_what_is_not_finite_goes_and_tells_nothing() -> None:
    scores, rewards, groups = buffer()
    odd = torch.tensor([math.nan, math.inf])
    more = torch.cat([scores, odd]), torch.cat([rewards, torch.ones(2)]), torch.cat([groups, groups[-2:]])
    found = select_episodes(*more, ALL, Posterior())
    assert found.kept.tolist() == [True] * len(scores) + [False, False]
    assert torch.equal(found.weights[:-2], select_episodes(scores, rewards, groups, ALL, Posterior()).weights)


def test_of_nothing_there_is_nothing() -> None:
    nothing = torch.zeros(0)
    with pytest.warns(UserWarning, match="too few"):
        assert len(select_episodes(nothing, nothing, nothing.long(), ALL, Posterior()).weights) == 0


def test_scores_alone_are_refused() -> None:
    with pytest.raises(UsageError, match="it reads rewards too"):
        Posterior()(torch.ones(3))


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (Posterior, {"sure": 1.0}, "sure = 1.0"),
        (Posterior, {"threshold": math.nan}, "threshold = nan"),
        (Posterior, {"prompt_strength": 0.0}, "prompt_strength = 0.0"),
        (LikelyRight, {"probability": 0.0}, "probability = 0.0"),
        (LikelyRight, {"least": 1}, "least = 1"),
    ],
)
def test_options_out_of_range(rule: type[Any], options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        rule(**options)


def test_the_reason_says_which_probability_was_missed() -> None:
    scores, rewards, groups = buffer()
    rule: KeepRule = LikelyRight(probability=0.8)
    found = select_episodes(scores, rewards, groups, rule, Uniform())
    assert {one for one in found.reasons if one} == {"its reward is right with less than 0.8"}
