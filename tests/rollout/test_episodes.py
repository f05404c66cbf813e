from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from parts import make_episodes
from torch import Tensor

from ippo import Episodes

NAN = float("nan")


def contents(episodes: Episodes) -> dict[str, Any]:
    """All that a buffer holds, padding left out, in a form that compares."""
    trimmed = episodes.trim() if len(episodes) else episodes
    facts: dict[str, Any] = {"extras": {key: list(values) for key, values in episodes.extras.items()}}
    for field in dataclasses.fields(Episodes):
        value = getattr(trimmed, field.name)
        if isinstance(value, Tensor):
            axis = field.metadata["axis"]
            mask = {"token": trimmed.response_mask, "prompt": trimmed.prompt_mask}.get(axis)
            rows = (
                value.tolist() if mask is None else [row[real].tolist() for row, real in zip(value, mask, strict=True)]
            )
            facts[field.name] = (str(value.dtype), repr(rows))  # as text, NaN equals NaN
        elif field.name not in ("extras", "dropped"):
            facts[field.name] = value
    return {**facts, "dropped": [contents(part) for part in episodes.dropped]}


def rewards(episodes: Episodes) -> list[float]:
    return episodes.rewards.tolist()


class TestRows:
    @pytest.mark.parametrize("index", [torch.tensor([3, 1]), torch.tensor([3, 1]).bool()], ids=["places", "bools"])
    def test_every_field_goes_along(self, index: Tensor) -> None:
        episodes = make_episodes(2 if index.dtype == torch.bool else 5)
        drawn = {"engine_logprobs": episodes.values - 1, "importance": episodes.values + 1}
        episodes = dataclasses.replace(episodes, **drawn, logprob_jvps=episodes.values + 2)
        places = index.nonzero().flatten().tolist() if index.dtype == torch.bool else index.tolist()
        picked = episodes.rows(index)
        for field in dataclasses.fields(Episodes):
            if field.metadata:
                value, whole = getattr(picked, field.name), getattr(episodes, field.name)
                assert len(value) == len(places)
                for row, place in zip(value, places, strict=True):
                    assert torch.equal(row, whole[place]) if isinstance(row, Tensor) else row == whole[place]
        assert picked.extras == {"answer": [episodes.extras["answer"][place] for place in places]}

    def test_trim_cuts_the_token_columns_of_all_fields(self) -> None:
        trimmed = make_episodes().trim()
        assert trimmed.prompt_ids.shape == (5, 3)
        assert {getattr(trimmed, name).shape for name in ("response_ids", "advantages", "values")} == {(5, 4)}
        assert contents(trimmed) == contents(make_episodes())


class TestSelect:
    def test_survivors_keep_their_order_and_the_others_travel_along_with_their_reasons(self) -> None:
        episodes = make_episodes()
        mask = torch.tensor([True, False, True, False, True])
        chosen = episodes.select(mask, ["", "bad", "", "worse", ""])
        assert rewards(chosen) == [0, 2, 4]
        assert "reason" not in chosen.extras
        (out,) = chosen.dropped
        assert rewards(out) == [1, 3]
        assert out.extras == {"answer": [None, "3"], "reason": ["bad", "worse"]}

    def test_one_reason_may_serve_all(self) -> None:
        (out,) = make_episodes(3).select(torch.tensor([False, True, False]), "too long").dropped
        assert out.extras["reason"] == ["too long", "too long"]

    def test_dropped_parts_add_up(self) -> None:
        first = make_episodes().select(torch.arange(5) != 2, "first").with_extras(score=[0.0, 1.0, 3.0, 4.0])
        second = first.select(first.rewards > 0, "second")
        assert rewards(second) == [1, 3, 4]
        assert [rewards(part) for part in second.dropped] == [[2], [0]]
        assert second.dropped[0].extras.keys() == {"answer", "reason"}
        assert second.dropped[1].extras == {"answer": ["0"], "score": [0.0], "reason": ["second"]}

    def test_keeping_all_drops_nothing(self) -> None:
        assert make_episodes().select(torch.ones(5, dtype=torch.bool), "none").dropped == ()

    def test_keeping_none(self) -> None:
        chosen = make_episodes().select(torch.zeros(5, dtype=torch.bool), "all")
        assert len(chosen) == 0
        assert rewards(chosen.dropped[0]) == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize(
        "mask", [torch.ones(4).bool(), torch.ones(5), torch.tensor([0, 1]), torch.ones(5, 1).bool()]
    )
    def test_refuses_what_is_not_one_bool_an_episode(self, mask: Tensor) -> None:
        with pytest.raises(ValueError, match="mask must be 5 bools, one an episode, but is torch"):
            make_episodes().select(mask)


class TestReweight:
    def test_takes_the_weights_in_the_buffers_dtype(self) -> None:
        weights = make_episodes(3).reweight(torch.tensor([0.5, 0.0, 2.5], dtype=torch.float64)).weights
        assert weights.tolist() == [0.5, 0.0, 2.5]
        assert weights.dtype == torch.float32

    @pytest.mark.parametrize("bad", [[1.0, 1.0], [1.0, -0.1, 1.0], [1.0, NAN, 1.0], [1.0, float("inf"), 1.0]])
    def test_refuses_anything_else(self, bad: list[float]) -> None:
        with pytest.raises(ValueError, match="weights must be 3 finite numbers >= 0"):
            make_episodes(3).reweight(torch.tensor(bad))


class TestAnnotate:
    def test_adds_and_replaces_columns(self) -> None:
        episodes = make_episodes(2).with_extras(score=[0.1, 0.2]).with_extras(score=[0.3, 0.4], other=["a", "b"])
        assert episodes.extras == {"answer": ["0", None], "score": [0.3, 0.4], "other": ["a", "b"]}

    @pytest.mark.parametrize("name", ["prompt", "response", "reward", "weight", "kept"])
    def test_refuses_the_buffers_own_names(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"note '{name}' needs a free name and 2 values"):
            make_episodes(2).with_extras(**{name: [1, 2]})

    def test_refuses_another_length(self) -> None:
        with pytest.raises(ValueError, match="note 'score' needs a free name and 2 values, one an episode, but has 1"):
            make_episodes(2).with_extras(score=[0.1])


@pytest.mark.parametrize(
    "change",
    [
        lambda episodes: episodes.select(torch.arange(5) > 1, "first"),
        lambda episodes: episodes.reweight(torch.full((5,), 2.0)),
        lambda episodes: episodes.with_extras(score=[0.0] * 5),
        lambda episodes: episodes.rows(torch.tensor([0])),
    ],
    ids=["select", "reweight", "annotate", "rows"],
)
def test_the_old_buffer_stays_as_it_was(change: Callable[[Episodes], Episodes]) -> None:
    episodes = make_episodes()
    before = contents(episodes)
    assert contents(change(episodes)) != before
    assert contents(episodes) == before


class TestMinibatches:
    @pytest.mark.parametrize(
        ("count", "size", "sizes"), [(10, 4, [4, 3, 3]), (10, 5, [5, 5]), (3, 8, [3]), (7, 1, [1] * 7), (9, 8, [5, 4])]
    )
    def test_hold_each_episode_once_in_parts_of_like_size(self, count: int, size: int, sizes: list[int]) -> None:
        parts = make_episodes(count).minibatches(size)
        assert sorted(map(len, parts), reverse=True) == sizes
        assert sorted(value for part in parts for value in rewards(part)) == list(range(count))

    def test_draw_a_new_order_each_time_and_repeat_it_with_a_generator(self) -> None:
        episodes, generator = make_episodes(20), torch.Generator()
        first, second = ([rewards(part) for part in episodes.minibatches(6, generator.manual_seed(3))] for _ in "ab")
        third = [rewards(part) for part in episodes.minibatches(6, generator)]
        assert first == second
        assert first != third
        assert first[0] != sorted(first[0])

    def test_are_trimmed(self) -> None:
        for part in make_episodes(8).minibatches(1):
            assert part.prompt_mask.all()
            assert part.response_mask.all()

    def test_no_episodes_make_no_minibatches(self) -> None:
        assert make_episodes(3).rows(torch.zeros(3).bool()).minibatches(2) == []


def test_records_hold_survivors_first_and_then_the_dropped() -> None:
    episodes = make_episodes(4).select(torch.tensor([True, True, False, True]), "early")
    episodes = episodes.with_extras(score=[0.5, -0.5, 1.5]).reweight(torch.tensor([0.5, 0.0, 1.5]))
    table = episodes.select(torch.tensor([True, False, True]), "late").records()
    assert table == {
        "prompt": ["prompt 0", "prompt 3", "prompt 2", "prompt 1"],
        "response": ["response 0", "response 3", "response 2", "response 1"],
        "reward": [0.0, 3.0, 2.0, 1.0],
        "finished": [True, False, True, False],
        "answer": ["0", "3", "2", None],
        "score": [0.5, 1.5, None, -0.5],
        "weight": [0.5, 1.5, 0.0, 0.0],
        "kept": [True, True, False, False],
        "reason": ["", "", "early", "late"],
    }
