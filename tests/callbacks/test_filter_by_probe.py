"""A filter whose keep rule asks answers that look alike, in whole trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from parts import MakeModule, MakeTrainer, Recorder
from torch import Tensor

from ippo import PromptDataModule
from ippo.callbacks import InfluenceFilterCallback, ReproducibleState
from ippo.callbacks.influence.selecting import select_together
from ippo.errors import UsageError
from ippo.influence import PositiveProbe, Uniform
from ippo.models.hidden import answer_states
from ippo.rollout.episodes import Episodes


def probed(**options: Any) -> InfluenceFilterCallback:
    return InfluenceFilterCallback(keep=PositiveProbe(least=4, **options), min_survival=0.0)


def remembered(callback: InfluenceFilterCallback) -> dict[str, Tensor]:
    return callback.keep.state_dict()


def test_it_learns_from_the_policys_own_states(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
) -> None:
    """The first rollout's rewarded answers are remembered, with the states that the policy had then, and signs."""
    module, callback, recorder = make_module(inner_epochs=1), probed(), Recorder()
    seen: list[tuple[Episodes, Tensor, Tensor]] = []

    class Look(L.Callback):
        def on_scored(self, trainer: Any, pl_module: Any, scored: Any) -> None:
            seen.append((scored.rows, scored.scores, answer_states(pl_module.scored_module, scored.rows, 8)))

    make_trainer(callback, Look(), recorder).fit(module, data)
    episodes, scores, states = seen[0]
    told = (episodes.rewards > 0.5) & (scores != 0)
    assert told.any()
    state = remembered(callback)
    assert torch.allclose(state["features"][: int(told.sum())], states[told], atol=1e-5)
    assert torch.equal(state["agrees"][: int(told.sum())], scores[told] > 0)


def test_a_resumed_run_ends_where_an_unbroken_one_does(
    tmp_path: Path, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
) -> None:
    def fit(iterations: int, checkpoint: Path | None = None) -> tuple[L.Trainer, Any, dict[str, Tensor]]:
        module, callback = make_module(samples_per_prompt=4), probed()
        trainer = make_trainer(callback, ReproducibleState(), max_epochs=iterations)
        trainer.fit(module, data, ckpt_path=checkpoint)
        return trainer, module, remembered(callback)

    torch.manual_seed(0)
    _, unbroken, expected = fit(4)
    torch.manual_seed(0)
    trainer, _, _ = fit(2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    saved = torch.load(tmp_path / "two.ckpt", weights_only=True)  # no pickled code
    assert len(saved["callbacks"]["InfluenceFilterCallback{'name': 'influence', 'unit': 'buffer'}"]["keep"]["agrees"])
    torch.manual_seed(77)
    _, resumed, found = fit(4, tmp_path / "two.ckpt")
    assert len(expected["agrees"]) > 8
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    parameters = dict(unbroken.model.named_parameters())
    assert all(torch.equal(one, parameters[name]) for name, one in resumed.model.named_parameters())


def test_a_checkpoint_from_before_rules_learned_anything_is_taken(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
) -> None:
    callback = probed()
    make_trainer(callback).fit(make_module(), data)
    state = {name: part for name, part in callback.state_dict().items() if name != "keep"}
    fresh = probed()
    fresh.load_state_dict(state)
    assert fresh.batches == callback.batches > 0
    assert not remembered(fresh)


def test_rows_of_another_type_bring_their_own_features_or_are_refused() -> None:
    with pytest.raises(UsageError, match="no entry of that name"):
        select_together(torch.ones(3), {"rewards": torch.ones(3)}, PositiveProbe(), Uniform())
    rows = {"rewards": torch.ones(3), "features": torch.randn(3, 2)}
    found, _ = select_together(torch.tensor([1.0, -1.0, 1.0]), rows, PositiveProbe(), Uniform())
    assert found.kept.tolist() == [True, False, True]


def test_a_policy_whose_layers_are_not_known_is_refused_before_the_first_rollout(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ippo.models.hidden.layers_of", lambda _: [])
    module = make_module()
    monkeypatch.setattr(module.engine, "generate", lambda *_, **__: 1 / 0)
    with pytest.raises(UsageError, match="use keep=PositiveScore"):
        make_trainer(probed()).fit(module, data)
