"""The weight of the gold solutions follows what the scores say of the rewards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parts import GivenScores, MakeModule, MakeTrainer, Recorder

from ippo import PromptDataModule
from ippo.callbacks import AdaptivePtx, InfluenceFilterCallback
from ippo.errors import UsageError
from ippo.functional import agreement
from ippo.influence import BufferDirection

AGREE, OPPOSE, HALF = [1.0] * 8, [-2.0] * 8, [3.0, -1.0] * 4


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([1.0, 2.0], 1.0), ([-1.0, -0.5], -1.0), ([3.0, -1.0], 0.5), ([0.0], 0.0), ([], 0.0), ([1.0, float("nan")], 1.0)],
)
def test_agreement_by_hand(scores: list[float], expected: float) -> None:
    assert agreement(torch.tensor(scores)).item() == expected


def given(*scores: list[float], **options: Any) -> InfluenceFilterCallback:
    return InfluenceFilterCallback.paper(scorer=GivenScores(*scores), **{"min_survival": 0.0, **options})


@pytest.fixture
def module(make_module: MakeModule) -> Any:
    return make_module(samples_per_prompt=2, ptx_coef=0.5)


def test_the_factor_is_less_where_the_rewards_agree_and_more_where_they_oppose(
    module: Any, make_trainer: MakeTrainer, data: PromptDataModule
) -> None:
    recorder = Recorder()
    scored = given(HALF, OPPOSE, AGREE, dry_run=True)
    make_trainer(scored, AdaptivePtx(), recorder, max_epochs=3).fit(module, data)
    assert [curves["ppo/ptx_agreement"] for curves in recorder.curves] == [0.5, -1.0, 1.0]
    assert [curves["ppo/ptx_coef"] for curves in recorder.curves[:2]] == [0.25, 1.0]
    assert "ppo/ptx_loss" in recorder.curves[1]
    assert module.ppo.ptx_coef == 0.5  # as it was given


def test_an_acting_filter_is_heard_before_it_drops(
    module: Any, make_trainer: MakeTrainer, data: PromptDataModule
) -> None:
    recorder = Recorder()
    make_trainer(given(HALF), AdaptivePtx(), recorder).fit(module, data)
    assert recorder.curves[0]["ppo/ptx_coef"] == 0.25


def test_an_iteration_that_is_not_scored_keeps_the_factor(
    module: Any, make_trainer: MakeTrainer, data: PromptDataModule
) -> None:
    recorder = Recorder()
    make_trainer(given(OPPOSE, every_n_batches=2), AdaptivePtx(), recorder, max_epochs=2).fit(module, data)
    assert [curves["ppo/ptx_coef"] for curves in recorder.curves] == [1.0, 0.5]


@pytest.mark.parametrize(
    "callbacks",
    [list, lambda: [given(AGREE, name="other")], lambda: [given(AGREE, direction=BufferDirection())]],
    ids=["no filter", "another name", "no gold"],
)
def test_refuses_to_listen_to_nobody(
    module: Any, make_trainer: MakeTrainer, data: PromptDataModule, callbacks: Any
) -> None:
    with pytest.raises(UsageError, match=r"AdaptivePtx\.name = 'influence': no filter of this name"):
        make_trainer(*callbacks(), AdaptivePtx()).fit(module, data)


def test_refuses_a_factor_of_nothing(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
) -> None:
    with pytest.raises(UsageError, match=r"ppo\.ptx_coef = 0\.0: AdaptivePtx multiplies it"):
        make_trainer(given(AGREE), AdaptivePtx()).fit(make_module(samples_per_prompt=2), data)
