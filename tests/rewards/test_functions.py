from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any

import numpy
import pytest
import torch
from parts import plainly
from torch import Tensor, nn

from ippo.errors import UsageError
from ippo.rewards import NUMBERS, Rewards
from ippo.rewards.functions import numbers

NAN = float("nan")
TEXTS = ["#### 4", "#### 5", ""]


def length(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float]:
    return [float(len(text)) for text in completions]


def unless_empty(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float | None]:
    return [1.0 if text else None for text in completions]


def give(*returned: Any) -> Any:
    """A reward that returns this, whatever it is asked."""
    return lambda prompts, completions, **_: returned[0]


class Model(nn.Module):
    """A reward model: one weight, and dropout that would drop everything in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.dropout = nn.Parameter(torch.tensor(2.0)), nn.Dropout(1.0)

    def forward(self, prompts: Sequence[str], completions: Sequence[str], **_: object) -> Tensor:
        return self.dropout(self.weight * torch.ones(len(completions), 1, device=self.weight.device))


class TestNumbers:
    @pytest.mark.parametrize(
        "returned",
        [
            [1.0, 0.0],
            (1, 0),
            [True, False],
            iter([1.0, 0.0]),
            [numpy.float32(1), numpy.int64(0)],
            [torch.tensor(1.0), torch.tensor([0.0])],
            [Fraction(1), Decimal(0)],
            torch.tensor([1.0, 0.0]),
            torch.tensor([[1.0], [0.0]], requires_grad=True),
            torch.tensor([1, 0], dtype=torch.bfloat16),
            torch.tensor([True, False]),
            numpy.array([1.0, 0.0]),
            numpy.array([[1], [0]]),
        ],
        ids=plainly,
    )
    def test_one_a_completion_in_whatever_they_come(self, returned: Any) -> None:
        assert numbers(returned, 2, "f") == [1.0, 0.0]

    @pytest.mark.parametrize("returned", [[None, 0.5], numpy.array([None, 0.5])], ids=plainly)
    def test_none_stays_none(self, returned: Any) -> None:
        assert numbers(returned, 2, "f") == [None, 0.5]

    def test_what_is_not_finite_is_a_number_and_no_none(self) -> None:
        found = numbers([NAN, -math.inf], 2, "f")
        assert str(found) == "[nan, -inf]"

    @pytest.mark.parametrize(
        ("returned", "what"),
        [
            ([1.0], "'1 rewards'"),
            ([], "'0 rewards'"),
            (None, "'None'"),
            (1.0, "'1.0'"),
            (torch.tensor(1.0), r"'Tensor of shape \[\]'"),
            (numpy.float64(1.0), r"'float64 of shape \[\]'"),
            (torch.ones(2, 2), r"completion 0"),
            (torch.ones(1, 2), r"'1 rewards'"),
            ("11", "11"),
            ({"a": 1, "b": 2}, "'a': 1"),
            ({1.0, 2.0}, "1.0, 2.0"),
            ([1.0, "1.0"], "'1.0' for completion 1"),
            ([1.0, [1.0]], r"\[1.0\] for completion 1"),
            ([1.0, 1j], "1j for completion 1"),
            ([1.0, 10**400], "for completion 1"),
        ],
        ids=plainly,
    )
    def test_what_is_none_of_them_is_refused_with_its_function_and_the_remedy(self, returned: Any, what: str) -> None:
        remedy = "return one number for each of 2 completions, or None where it does not apply to one"
        with pytest.raises(UsageError, match=rf"^reward my_reward = .*{what}.*: {remedy}$"):
            numbers(returned, 2, "my_reward")


class TestRewards:
    def test_one_is_its_own_sum(self) -> None:
        earned = Rewards(NUMBERS.reward)(["p"] * 3, TEXTS, answer=["4"] * 3)
        assert earned.total == [1.0, 0.0, 0.0]
        assert earned.extras == {"reward_raw": [1.0, 0.0, 0.0]}

    def test_several_are_summed_with_their_weights(self) -> None:
        earned = Rewards([NUMBERS.reward, length], [10.0, -0.5])(["p"] * 3, TEXTS, answer=["4"] * 3)
        assert earned.total == [7.0, -3.0, 0.0]
        assert earned.each == {"reward": [1.0, 0.0, 0.0], "length_2": [6.0, 6.0, 0.0]}

    def test_weights_are_one_unless_they_are_given(self) -> None:
        assert Rewards([length, length])(["p"], ["abc"]).total == [6.0]

    def test_one_that_does_not_apply_is_left_out_of_the_sum(self) -> None:
        assert Rewards([unless_empty, length], [2.0, 1.0])(["p"] * 3, TEXTS).total == [8.0, 8.0, 0.0]

    def test_a_row_that_none_applies_to_has_no_reward(self) -> None:
        earned = Rewards([unless_empty, unless_empty])(["p"] * 3, TEXTS)
        assert earned.total == [2.0, 2.0, None]
        assert earned.tensor[:2].tolist() == [2.0, 2.0]
        assert earned.tensor[2].isnan()

    def test_a_nan_is_no_none(self) -> None:
        (total,) = Rewards([give([NAN]), give([1.0])])(["p"], ["a"]).total
        assert total is not None
        assert math.isnan(total)

    def test_names_are_those_of_the_functions_and_of_no_other_curve(self) -> None:
        class Judge:
            def __call__(self, **_: object) -> list[float]:
                return []

        functions = [length, partial(length), Judge(), lambda **_: [], Model(), NUMBERS.reward]
        assert Rewards(functions).names == ["length_2", "length_3", "Judge", "lambda", "Model", "reward"]

    def test_the_culprit_among_several_is_named(self) -> None:
        def broken(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float]:
            return [1.0]

        with pytest.raises(UsageError, match="reward broken = '1 rewards'"):
            Rewards([length, broken])(["p"] * 3, TEXTS)

    @pytest.mark.parametrize(("count", "weights"), [(2, [1.0]), (1, [1.0, 2.0]), (2, [1.0, NAN]), (1, [math.inf])])
    def test_refuses_weights_that_are_not_one_a_reward(self, count: int, weights: list[float]) -> None:
        with pytest.raises(UsageError, match=rf"reward_weights = .*: give one finite weight for each of {count}"):
            Rewards([length] * count, weights)

    @pytest.mark.parametrize("functions", [[], "org/a-reward-model", [length, None]], ids=plainly)
    def test_refuses_what_is_no_function(self, functions: Any) -> None:
        with pytest.raises(UsageError, match=r"^reward = "):
            Rewards(functions)


class TestAsync:
    @staticmethod
    async def slow(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float | None]:
        await asyncio.sleep(0.2)
        return [1.0 if text else None for text in completions]

    def test_is_awaited_beside_others(self) -> None:
        earned = Rewards([self.slow, length], [1.0, 0.5])(["p"] * 3, TEXTS)
        assert earned.total == [4.0, 4.0, 0.0]
        assert earned.each["slow"] == [1.0, 1.0, None]

    def test_several_wait_at_the_same_time(self) -> None:
        start = time.perf_counter()
        assert Rewards([self.slow] * 5)(["p"], ["a"]).total == [5.0]
        assert time.perf_counter() - start < 0.9

    def test_works_where_a_loop_is_running_already_as_in_a_notebook(self) -> None:
        async def cell() -> list[float | None]:
            return Rewards(self.slow)(["p"], ["a"]).total

        assert asyncio.run(cell()) == [1.0]

    def test_what_one_rollout_opened_is_open_in_the_next(self) -> None:
        loops = []

        async def keeps(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float]:
            loops.append(asyncio.get_running_loop())
            return [1.0] * len(completions)

        rewards = Rewards(keeps)
        rewards(["p"], ["a"])
        rewards(["p"], ["a"])
        assert loops[0] is loops[1]
        assert loops[0].is_running()

    def test_an_error_in_it_is_its_own(self) -> None:
        async def fails(**_: object) -> list[float]:
            raise ConnectionError("no judge today")

        with pytest.raises(ConnectionError, match="no judge today"):
            Rewards([fails, self.slow])(["p"], ["a"])


class TestModels:
    def test_are_asked_in_evaluation_mode_and_without_gradients(self) -> None:
        model = Model().train()
        assert Rewards(model)(["p"] * 2, ["a", "b"]).total == [2.0, 2.0]
        assert model.training

    def test_are_moved_to_the_device_of_the_training(self) -> None:
        model = Model()
        rewards = Rewards([model, length]).to("meta")
        assert model.weight.device.type == "meta"
        assert rewards.names == ["Model", "length_2"]
