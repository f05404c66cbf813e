"""A keep rule that asks answers that look alike."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ippo.errors import UsageError
from ippo.influence import PositiveProbe, PositiveScore, RandomMatched, RightAndRandom, Uniform, select_episodes


def gamed(n: int = 256, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores, rewards, features, and who is gamed: of rewarded answers a quarter, positive two times of five, where the
    others' are positive nine times of ten."""
    generator = torch.Generator().manual_seed(seed)
    rewards = (torch.rand(n, generator=generator) < 0.5).float()
    hacked = (torch.rand(n, generator=generator) < 0.25) & (rewards > 0)
    positive = torch.rand(n, generator=generator) < torch.where(hacked, 0.4, 0.9)
    features = torch.randn(n, 16, generator=generator) + 2 * hacked.float().unsqueeze(1)
    return torch.where(positive, 1.0, -1.0), rewards, features, hacked


def kept(rule: PositiveProbe, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    scores, rewards, features, hacked = gamed(seed=seed)
    found = select_episodes(scores, rewards, torch.arange(256), rule, Uniform(), features=features)
    return found.kept, rewards > 0, hacked


def test_a_kind_that_is_seldom_positive_goes_and_the_rest_stays() -> None:
    rule = PositiveProbe()
    for seed in range(3):
        stays, rewarded, hacked = kept(rule, seed)
    by_sign = gamed(seed=2)[0] > 0
    assert by_sign[hacked].float().mean() > 0.3
    assert stays[hacked].float().mean() < 0.15
    honest = rewarded & ~hacked
    assert stays[honest].float().mean() > by_sign[honest].float().mean() - 0.05
    assert torch.equal(stays[~rewarded], by_sign[~rewarded])
    assert not (stays & ~by_sign).any()


def test_it_remembers_earlier_buffers() -> None:
    """What a first small buffer cannot tell a tenth one can."""
    scores, rewards, features, hacked = gamed(640)
    rule, leaked = PositiveProbe(), []
    for part in range(10):
        rows = slice(64 * part, 64 * (part + 1))
        groups = torch.arange(64)
        found = select_episodes(scores[rows], rewards[rows], groups, rule, Uniform(), features=features[rows])
        leaked.append(int((found.kept & hacked[rows]).sum()) / int(hacked[rows].sum()))
    assert leaked[-1] < leaked[0]
    assert sum(leaked[-3:]) / 3 < 0.2


def test_the_latest_answers_are_remembered() -> None:
    rule = PositiveProbe(memory=100)
    kept(rule, 0)
    kept(rule, 1)
    scores, rewards, features, _ = gamed(seed=1)
    state = rule.state_dict()
    assert torch.equal(state["features"], features[rewards > 0][-max(100, int(rewards.sum())) :])
    assert torch.equal(state["agrees"], (scores > 0)[rewards > 0][-len(state["features"]) :])


def test_a_resumed_rule_decides_as_one_that_went_on() -> None:
    unbroken, resumed = PositiveProbe(), PositiveProbe()
    kept(unbroken, 0)
    resumed.load_state_dict({name: value.clone() for name, value in unbroken.state_dict().items()})
    assert torch.equal(kept(unbroken, 1)[0], kept(resumed, 1)[0])
    assert not torch.equal(kept(PositiveProbe(), 1)[0], kept(unbroken, 1)[0])


def test_where_features_tell_nothing_it_is_the_sign() -> None:
    scores, rewards, _, _ = gamed()
    noise = torch.randn(256, 16, generator=torch.Generator().manual_seed(9))
    found = select_episodes(scores, rewards, torch.arange(256), PositiveProbe(), Uniform(), features=noise)
    plain = select_episodes(scores, rewards, torch.arange(256), PositiveScore(), Uniform())
    assert torch.equal(found.kept, plain.kept)


@pytest.mark.parametrize("scores", [torch.ones(40), -torch.ones(40), torch.zeros(40)], ids=["all", "none", "no score"])
def test_of_signs_that_are_all_alike_it_is_the_sign(scores: Tensor) -> None:
    rule = PositiveProbe().with_features(torch.randn(40, 3))
    assert torch.equal(rule(scores, torch.ones(40), torch.arange(40)), scores > 0)


def test_too_few_rewarded_answers_have_no_say() -> None:
    scores, rewards, features, _ = gamed(48)
    found = select_episodes(scores, rewards, torch.arange(48), PositiveProbe(), Uniform(), features=features)
    assert torch.equal(found.kept, scores > 0)


def test_features_of_rows_without_a_finite_score_are_left_out() -> None:
    scores, rewards, features, _ = gamed()
    scores[:10], features[:10] = torch.nan, torch.nan
    rule = PositiveProbe()
    select_episodes(scores, rewards, torch.arange(256), rule, Uniform(), features=features)
    assert rule.state_dict()["features"].isfinite().all()


@pytest.mark.parametrize("control", [lambda rule: RandomMatched(rule, True), RightAndRandom], ids=["random", "right"])
def test_controls_match_its_number(control: object) -> None:
    scores, rewards, features, _ = gamed()
    rows = (scores, rewards, torch.arange(256))
    wanted = select_episodes(*rows, PositiveProbe(), Uniform(), features=features)
    rule = control(PositiveProbe())  # type: ignore[operator]
    found = select_episodes(*rows, rule, Uniform(), features=features)
    assert int(found.kept.sum()) == max(int(wanted.kept.sum()), int(rewards.sum()) * isinstance(rule, RightAndRandom))
    assert rule.state_dict()["agrees"].any()


def test_without_features_it_says_where_they_come_from() -> None:
    with pytest.raises(UsageError, match="with_features"):
        PositiveProbe()(torch.ones(2), torch.ones(2), torch.arange(2))


@pytest.mark.parametrize("features", [torch.ones(40), torch.full((40, 2), torch.nan), torch.ones(40, 0)])
def test_refuses_what_are_no_features(features: Tensor) -> None:
    with pytest.raises(UsageError, match="finite numbers"):
        PositiveProbe().with_features(features)


def test_refuses_features_of_another_width_than_before() -> None:
    rule = PositiveProbe()
    rule.with_features(torch.randn(40, 3))(torch.ones(40), torch.ones(40), torch.arange(40))
    with pytest.raises(UsageError, match="same d"):
        rule.with_features(torch.randn(40, 4))


@pytest.mark.parametrize(
    "options", [{"share": 1.0}, {"penalty": 0.0}, {"least": 3}, {"least": 32, "memory": 31}, {"width": 0}], ids=str
)
def test_refuses_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=list(options)[-1]):
        PositiveProbe(**options)  # type: ignore[arg-type]
