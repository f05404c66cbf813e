"""Hooks in bfloat16: only as long as next to no sign changes, which is measured and told."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from parts import MakeModule, MakeTrainer, Recorder
from small_modules import random_direction, squares
from torch import Tensor, nn

from ippo import Episodes, PromptDataModule
from ippo.callbacks import InfluenceFilterCallback
from ippo.errors import UsageError
from ippo.functional.agreement import flipped
from ippo.influence import BufferDirection, ExactScorer
from ippo.influence.half import CHECKED_EVERY


class Types:
    """In what a module's linear layers compute, call by call."""

    def __init__(self, module: nn.Module) -> None:
        self.seen: list[torch.dtype] = []
        first = next(part for part in module.modules() if isinstance(part, nn.Linear))
        first.register_forward_hook(lambda module, args, output: self.seen.append(output.dtype))


@pytest.mark.parametrize("backend", ["auto", "ghost"])
def test_the_first_call_and_one_in_sixteen_are_precise_and_the_others_are_close(
    make_module: MakeModule, rollout: Episodes, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ippo.influence.half.FLIPS", 0.1)  # one in sixteen
    module = make_module()  # as it sampled: no ratio is near its clip
    policy, losses = module.model.policy, module.policy_losses
    direction = random_direction(policy)
    precise = ExactScorer(backend).score(policy, losses, rollout.chunks(4), direction)
    scorer, types = ExactScorer(backend, precision="bfloat16"), Types(policy)
    found, half = [], []
    for _ in range(CHECKED_EVERY + 1):
        types.seen.clear()
        found.append(scorer.score(policy, losses, iter(rollout.chunks(4)), direction))
        half.append(set(types.seen))
    assert torch.equal(found[0], precise)
    assert torch.equal(found[CHECKED_EVERY], precise)
    assert half[1:CHECKED_EVERY] == [{torch.bfloat16}] * (CHECKED_EVERY - 1)
    assert half[0] == half[CHECKED_EVERY] == {torch.bfloat16, torch.float32}
    assert scorer.choice.endswith("; in bfloat16")
    off = (found[1] - precise).abs().max() / precise.abs().max()
    assert found[1].dtype == torch.float32
    assert 0 < off < 0.05


class Cancelling(nn.Module):
    """A difference of two nearly equal numbers, of which bfloat16 leaves none of the right digits."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 8, bias=False)
        self.outer = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(x).float()
        return self.outer(1000.0 + hidden) - self.outer(1000.0 + hidden.roll(1, 1))


def test_where_signs_change_all_is_float32_which_is_said_once() -> None:
    module, x = Cancelling(), torch.randn(64, 4)
    direction = random_direction(module)
    precise = ExactScorer().score(module, squares, [x], direction)
    scorer = ExactScorer(precision="bfloat16")
    with pytest.warns(UserWarning, match=r"bfloat16 changes \d+% of 64 signs, so that scores are taken in float32"):
        first = scorer.score(module, squares, [x], direction)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = scorer.score(module, squares, [x], direction)
    assert torch.equal(first, precise)
    assert torch.equal(second, precise)
    assert scorer.choice.endswith("; in float32")


class Unhooked(nn.Module):
    """Uses a layer's weight outside of the layer, which hooks cannot see."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) @ self.layer.weight


def test_what_hooks_cannot_cover_is_float32() -> None:
    module, x = Unhooked(), torch.randn(8, 4)
    direction = random_direction(module)
    scorer = ExactScorer(precision="bfloat16")
    for _ in range(2):
        found = scorer.score(module, squares, [x], direction)
        assert torch.equal(found, ExactScorer().score(module, squares, [x], direction))
    assert scorer.choice.startswith("jvp")
    assert scorer.choice.endswith("; in float32")


def test_leaving_out_takes_float32_and_other_backends_are_refused() -> None:
    module, x = nn.Linear(4, 4), torch.randn(8, 4)
    direction = BufferDirection(leave_one_out=True)
    found = ExactScorer(precision="bfloat16").score(module, squares, [x], direction)
    assert torch.equal(found, ExactScorer().score(module, squares, [x], direction))
    with pytest.raises(UsageError, match="bfloat16 is for hooks"):
        ExactScorer("jvp", precision="bfloat16")
    with pytest.raises(UsageError, match="use float32 or bfloat16"):
        ExactScorer(precision="half")  # type: ignore[arg-type]


def test_a_filter_scores_by_it_and_a_resumed_one_goes_on_counting(
    make_module: MakeModule,
    make_trainer: MakeTrainer,
    data: PromptDataModule,
    recorder: Recorder,
) -> None:
    scorer = ExactScorer(parameters=1, precision="bfloat16")
    influence_filter = InfluenceFilterCallback(scorer=scorer, min_survival=0.0)
    make_trainer(influence_filter, recorder, max_epochs=3).fit(make_module(), data)
    assert scorer.choice == "ghost: every trainable parameter acts inside a layer whose rows are the episodes; in " + (
        "float32" if scorer.state_dict()["refused"] else "bfloat16"
    )
    again = ExactScorer(parameters=1, precision="bfloat16")
    again.load_state_dict(influence_filter.state_dict()["scorer"])
    assert again.state_dict() == scorer.state_dict()
    assert scorer.state_dict()["calls"] == (3 if not scorer.state_dict()["refused"] else 1)
    again.load_state_dict({})  # of a run that scored in float32


def test_nothing_has_no_flips() -> None:
    assert flipped(torch.empty(0), torch.empty(0)) == 0.0
