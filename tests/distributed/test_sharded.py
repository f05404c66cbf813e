"""A model that ranks hold in parts: PPO trains it as it would a whole one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from launch import DDP, on_ranks
from lightning.pytorch.strategies import ModelParallelStrategy
from parts import MakeModule, MakeTrainer, Recorder, state
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ippo import PPOModule, PromptDataModule


class Sharded(PPOModule):
    """As docs/scaling.md has it."""

    def configure_model(self) -> None:
        for part in (self.model.policy, self.model.value, self.model.reference):  # type: ignore[attr-defined]
            fully_shard(part, mesh=self.device_mesh["data_parallel"], reshard_after_forward=True)  # type: ignore[index]
        self.model.policy._is_fsdp_managed_module = True  # generate waits for the rank with the longest response


def test_ppo_trains_it_as_a_whole_one(
    tmp_path: Path, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
) -> None:
    def trainer(*callbacks: Any) -> Any:
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        return make_trainer(*callbacks, max_epochs=2, devices=2, strategy=strategy)

    def make(kind: type[PPOModule]) -> PPOModule:
        torch.manual_seed(0)
        module = make_module(samples_per_prompt=2, learning_rate=1e-4, value_learning_rate=1e-4)
        module.__class__ = kind
        return module

    def run(rank: int) -> dict[str, Any]:
        whole, replicated = Recorder(), make(PPOModule)
        make_trainer(whole, max_epochs=2, **DDP).fit(replicated, data)
        recorder, module = Recorder(), make(Sharded)
        trainer(recorder).fit(module, data)
        found: dict[str, Tensor] = state(module.model)
        assert all(isinstance(value, DTensor) for value in found.values())
        return {
            "weights": {name: value.full_tensor() for name, value in found.items()},  # type: ignore[attr-defined]
            "replicated": state(replicated.model),
            "texts": [[one.responses for one in each.episodes] for each in (recorder, whole)],
        }

    first, second = on_ranks(run, tmp_path)
    assert first["texts"][0] != second["texts"][0]
    before = state(make_module().model)
    for rank in (first, second):
        assert rank["texts"][0] == rank["texts"][1]
        for name, value in rank["weights"].items():
            torch.testing.assert_close(value, rank["replicated"][name], rtol=1e-5, atol=1e-6)
            assert torch.equal(value, before[name]) == name.startswith("reference"), name
