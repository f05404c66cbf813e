from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from ippo.errors import UsageError
from ippo.influence import Alarm, RewardHackingDetector


def episodes(opposing: Any, rewarded: int = 100, others: int = 50) -> tuple[Tensor, Tensor]:
    """Rewards and scores of an iteration in which so many of the rewarded episodes oppose."""
    rewards = torch.cat([torch.ones(rewarded), torch.zeros(others)])
    scores = torch.where(torch.arange(rewarded + others) < opposing, -2.0, 3.0)
    return rewards, scores


def alarms(detector: RewardHackingDetector, counts: Iterable[Any]) -> list[Alarm | None]:
    return [detector.update(*episodes(count)) for count in counts]


class TestAlarm:
    def test_by_hand(self) -> None:
        detector = RewardHackingDetector(baseline=0.2, odds_ratio=2.0, decision_interval=25.0, warmup=2, patience=1)
        found = alarms(detector, (40, 20, 30, 60, 25, 70))
        # Usual after two: 60 of 200. The third speaks against a rise and counts: 90 of 300, odds of 3 to 7. Doubled
        # they are 6 to 7, a share of 6/13.
        hit, miss = math.log(6 / 13 / 0.3), math.log(7 / 13 / 0.7)
        assert 30 * hit + 70 * miss < 0 < 60 * hit + 40 * miss
        expected = (60 + 25 + 70) * hit + (40 + 75 + 30) * miss  # it is above 0 all the way
        assert found[:5] == [None] * 5
        alarm = found[5]
        assert alarm is not None
        assert (alarm.iteration, alarm.since, alarm.opposing) == (5, 3, 155 / 300)
        assert alarm.usual == pytest.approx(0.3)
        assert alarm.cusum == detector.figures["cusum"] == pytest.approx(expected)

    def test_a_rise_that_comes_to_nothing_is_part_of_what_is_usual(self) -> None:
        detector = RewardHackingDetector(baseline=0.1, warmup=1)
        assert alarms(detector, (20, 32, 5)) == [None, None, None]
        assert detector.since is None
        assert detector.usual == pytest.approx(57 / 300)

    def test_a_rise_does_not_change_what_it_is_held_against(self) -> None:
        detector = RewardHackingDetector(baseline=0.1)
        alarms(detector, (20, 20, 20, 60, 70))
        assert detector.usual == pytest.approx(0.2)
        assert detector.since == 3

    def test_is_given_once_and_kept(self) -> None:
        detector = RewardHackingDetector()
        found = alarms(detector, (30, 30, 30, 90, 90, 90, 90))
        assert [place for place, alarm in enumerate(found) if alarm] == [4]
        assert detector.alarm is found[4]

    @pytest.mark.parametrize("patience", [1, 2, 3, 7])
    def test_takes_as_many_iterations_as_patience_says(self, patience: int) -> None:
        """However bad they are."""
        found = alarms(RewardHackingDetector(patience=patience), [30] * 3 + [100] * 9)
        assert [place for place, alarm in enumerate(found) if alarm] == [2 + patience]

    def test_says_what_it_means_in_one_sentence(self) -> None:
        (alarm,) = filter(None, alarms(RewardHackingDetector(patience=1), (30, 30, 30, 90)))
        assert str(alarm) == (
            "from iteration 3 on, 90% of the rewarded episodes oppose the gold set, where 30% are usual: "
            "the reward pays for something else than the gold solutions teach"
        )


class TestSilence:
    @pytest.mark.parametrize("share", [0.05, 0.3, 0.48])
    def test_where_nothing_changes(self, share: float) -> None:
        """Also where scores are noise: then half of the rewarded episodes oppose from the start."""
        draw = torch.Generator().manual_seed(0)
        runs = [
            alarms(RewardHackingDetector(), ((torch.rand(100, generator=draw) < share).sum() for _ in range(40)))
            for _ in range(25)
        ]
        assert sum(any(found) for found in runs) <= 1

    def test_after_a_single_iteration_that_is_strange(self) -> None:
        assert not any(alarms(RewardHackingDetector(), (30, 30, 30, 100, 30, 30, 100, 30, 30)))

    def test_where_fewer_and_fewer_oppose(self) -> None:
        assert not any(alarms(RewardHackingDetector(), range(60, 0, -2)))

    def test_where_nobody_is_rewarded(self) -> None:
        detector = RewardHackingDetector()
        for _ in range(9):
            assert detector.update(torch.zeros(5), -torch.ones(5)) is None
        assert detector.figures == {
            "usual": 0.2,
            "cusum": 0.0,
            "survival_unrewarded": 0.0,
        }


def test_scores_that_say_nothing_do_not_count() -> None:
    rewards, scores = episodes(33)
    silent = torch.tensor([0.0, torch.nan, -torch.inf])
    one, other = RewardHackingDetector(), RewardHackingDetector()
    for _ in range(3):
        one.update(rewards, scores)
        other.update(torch.cat([rewards, torch.ones(3)]), torch.cat([scores, silent]))
    assert (one.usual, one.cusum, one.figures["opposing"]) == (other.usual, other.cusum, other.figures["opposing"])
    assert one.usual == pytest.approx(0.33)


def test_rewards_of_any_unit() -> None:
    detector = RewardHackingDetector(threshold=None)
    detector.update(torch.tensor([10.0, 11.0, 20.0, 23.0]), torch.tensor([-1.0, 1.0, -1.0, 1.0]))  # the mean is 16
    assert detector.figures["opposing"] == 0.5
    assert detector.figures["survival_rewarded"] == 0.5


def test_correlation_within_prompts_where_prompts_are_known() -> None:
    rewards, scores = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([2.0, 1.0, -1.0, -2.0])
    detector = RewardHackingDetector()
    detector.update(rewards, scores)
    assert "rank_correlation_within" not in detector.figures
    detector.update(rewards, scores, torch.tensor([0, 0, 1, 1]))
    assert detector.figures["rank_correlation_within"] == 1.0


@pytest.mark.parametrize("broken_after", range(1, 7))
def test_goes_on_bit_for_bit_after_a_restart(broken_after: int) -> None:
    counts = (35, 31, 33, 45, 39, 50, 66, 71)
    whole, first, second = (RewardHackingDetector() for _ in range(3))
    expected = alarms(whole, counts)
    found = alarms(first, counts[:broken_after])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    found += alarms(second, counts[broken_after:])
    assert found == expected
    assert any(expected)
    assert json.dumps(second.state_dict()) == json.dumps(whole.state_dict())
    assert second.alarm == whole.alarm


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("baseline", 0.0),
        ("baseline", 1.0),
        ("odds_ratio", 1.0),
        ("decision_interval", 0.0),
        ("warmup", -1),
        ("patience", 0),
        ("threshold", math.inf),
    ],
)
def test_refuses_options_out_of_range(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{option} = {value}"):
        RewardHackingDetector(**{option: value})


def test_refuses_rewards_of_other_episodes() -> None:
    with pytest.raises(UsageError, match=r"scores = \[3\]: .*there are \[2\] rewards"):
        RewardHackingDetector().update(torch.ones(2), torch.ones(3))
