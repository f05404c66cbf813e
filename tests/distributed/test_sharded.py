"""A model that ranks hold in parts: PPO trains it, and every scorer refuses it by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from launch import on_ranks
from lightning.pytorch.strategies import ModelParallelStrategy
from parts import MakeModule, MakeTrainer, Recorder, state
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ippo import PPOModule, PromptDataModule
from ippo.callbacks import InfluenceFilterCallback
from ippo.errors import UsageError
from ippo.influence import BufferDirection, ExactScorer, RandomProjectionScorer, Scorer, TracInScorer

SCORERS: list[Scorer] = [
    *(ExactScorer(backend) for backend in ("auto", "ghost", "jvp", "loop", "fd")),  # type: ignore[arg-type]
    TracInScorer(),
    RandomProjectionScorer(),
]


class Sharded(PPOModule):
    """As docs/scaling.md has it."""

    def configure_model(self) -> None:
        for part in (self.model.policy, self.model.value, self.model.reference):  # type: ignore[attr-defined]
            fully_shard(part, mesh=self.device_mesh["data_parallel"], reshard_after_forward=True)  # type: ignore[index]
        self.model.policy._is_fsdp_managed_module = True  # generate waits for the rank with the longest response


def test_ppo_trains_it_and_scorers_refuse_it(
    tmp_path: Path, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
) -> None:
    def trainer(*callbacks: Any) -> Any:
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        return make_trainer(*callbacks, max_epochs=2, devices=2, strategy=strategy)

    def sharded(**options: Any) -> PPOModule:
        torch.manual_seed(0)
        module = make_module(samples_per_prompt=2, **options)
        module.__class__ = Sharded
        return module

    def run(rank: int) -> dict[str, Any]:
        recorder, module = Recorder(), sharded()
        trainer(recorder).fit(module, data)
        found: dict[str, Tensor] = state(module.model)
        assert all(isinstance(value, DTensor) for value in found.values())
        refusals = []
        for scorer in SCORERS:
            filters = InfluenceFilterCallback(scorer, direction=BufferDirection(), min_survival=0.0)
            with pytest.raises(UsageError) as refusal:
                trainer(filters).fit(sharded(), data)
            refusals.append(str(refusal.value))
        return {
            "weights": {name: value.full_tensor() for name, value in found.items()},  # type: ignore[attr-defined]
            "clipped": [one["ppo/clip_fraction"] for one in recorder.curves],
            "texts": [one.responses for one in recorder.episodes],
            "refusals": refusals,
        }

    first, second = on_ranks(run, tmp_path)
    assert first["texts"] != second["texts"]
    before = state(make_module().model)
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name])
        assert torch.isfinite(value).all()
        assert torch.equal(value, before[name]) == name.startswith("reference"), name
    assert len(first["refusals"]) == len(SCORERS)
    assert all("module = 'with sharded " in one and "train with strategy=ddp" in one for one in first["refusals"])
