"""Models of which each rank keeps a share, made without numbers, train, sample and are written out as whole ones."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import DDP, on_ranks
from lightning.pytorch.strategies import ModelParallelStrategy
from parts import MakeTrainer, Recorder, is_odd, state
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import LlamaForCausalLM

from ippo import PPOModule, PromptDataModule
from ippo.data import Task
from ippo.distributed import whole
from ippo.errors import UsageError
from ippo.models import LayoutName, LoraOptions, ModelOptions, build_models, export
from ippo.models.sharding import is_without_numbers, to_be_sharded, without_numbers
from ippo.ppo.options import EvaluationOptions, PPOOptions
from ippo.rollout.sampling import Sampling
from ippo.rollout.weights_file import write_weights

RATES: dict[str, Any] = {"learning_rate": 1e-3, "value_learning_rate": 1e-3}
UNEVEN: dict[str, Any] = {"samples_per_prompt": 2, "inner_epochs": 1, "minibatch_size": 8, "micro_batch_size": 4}
UNEVEN |= {"micro_batch_tokens": 100, "ptx_coef": 0.1, "ptx_batch_size": 5}  # ranks have other numbers of micro-batches


class Run:
    """A training of one layout, replicated or in parts, by the same pair of processes."""

    def __init__(self, policy: Any, tokenizer: Any, task: Task, make_trainer: MakeTrainer) -> None:
        self.policy, self.tokenizer, self.task, self.make_trainer = policy, tokenizer, task, make_trainer

    def __call__(
        self, data: Any, layout: LayoutName, sharded: bool, rank: int, precision: Any = None, **options: Any
    ) -> tuple[Any, Any]:
        torch.manual_seed(0)
        policy, models = copy.deepcopy(self.policy), ModelOptions(**options)

        def build(policy: Any) -> Any:
            return build_models(layout, policy, models, LoraOptions(rank=4))

        if sharded:
            held = policy if rank == 0 else without_numbers(policy)
            made = to_be_sharded(build, held, one_base=layout == "lora")
            assert is_without_numbers(made)
        else:
            made = build(policy)
        further = (PPOOptions(**UNEVEN, **RATES), Sampling(max_new_tokens=12, batch_tokens=70), EvaluationOptions(2))
        module = PPOModule(made, self.tokenizer, is_odd, self.task.check, *further)
        recorder, strategy = Recorder(), ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        ranks: dict[str, Any] = {**DDP, "strategy": strategy} if sharded else DDP
        self.make_trainer(recorder, max_epochs=3, precision=precision, **ranks).fit(module, data)
        return module, [one.responses for one in recorder.episodes]


@pytest.fixture
def run(policy: LlamaForCausalLM, tokenizer: Any, task: Task, make_trainer: MakeTrainer) -> Run:
    for hook in list(policy.lm_head._forward_hooks):
        policy.lm_head._forward_hooks.pop(hook)  # what is written out has none
    return Run(policy, tokenizer, task, make_trainer)


def shares(models: Any) -> float:
    """The share of the numbers that this rank holds."""
    held = {one.to_local().data_ptr(): one.to_local().numel() for one in models.parameters()}
    return sum(held.values()) / sum({one.to_local().data_ptr(): one.numel() for one in models.parameters()}.values())


LAYOUTS: dict[LayoutName, dict[str, Any]] = {
    "separate": {"gradient_checkpointing": True, "padding": "right"},
    "shared": {"value_gradient": True, "logits_at_a_time": 2000, "padding": "right"},
    "lora": {},
}


def test_every_layout_learns_in_parts_what_it_learns_whole(tmp_path: Path, run: Run, data: PromptDataModule) -> None:
    def both(rank: int) -> list[Any]:
        found = []
        for layout, options in LAYOUTS.items():
            replicated, texts = run(data, layout, False, rank, **options)
            module, own = run(data, layout, True, rank, **options)
            models = module.model
            assert own == texts
            assert shares(models) < 0.53
            layers = [part for part in models.modules() if isinstance(part, FSDPModule)]
            assert len(layers) > 2 * len({id(one) for one in (models.policy, models.value, models.reference)})
            tied = models.policy.get_input_embeddings().weight is models.policy.get_output_embeddings().weight
            assert tied
            moments = [one["exp_avg"] for one in module.optimizers().optimizer.state.values()]
            assert moments
            assert all(isinstance(one, DTensor) for one in moments)
            if layout == "lora":
                base = "model.layers.0.mlp.up_proj"
                adapted = models.policy.get_submodule(base).base_layer.weight
                assert models.value.trunk.get_submodule(base.removeprefix("model.")).base_layer.weight is adapted
                assert models.reference.get_submodule(base).weight is adapted
            export(models, run.tokenizer, tmp_path / f"parts-{layout}")
            write_weights(models.policy, tmp_path, here=rank == 0)
            weights = {name: whole(value) for name, value in state(models).items()}
            handed = {}
            if rank == 0:
                handed = load_file(tmp_path / "model.safetensors")
                export(replicated.model, run.tokenizer, tmp_path / f"whole-{layout}")
            found.append({"parts": weights, "whole": state(replicated.model), "handed": handed})
        with pytest.raises(UsageError, match="small steps are lost in it"):
            run(data, "separate", True, rank, "bf16-true")
        half = [run(data, "separate", sharded, rank, "bf16-mixed")[0].model for sharded in (False, True)]
        return [*found, [{name: whole(value) for name, value in state(model).items()} for model in half]]

    for rank, (*results, half) in enumerate(on_ranks(both, tmp_path / "ranks")):
        assert_close(half[1], half[0], 1e-2)  # its rounding; what is learned is more
        for layout, result in zip(LAYOUTS, results, strict=True):
            assert_close(result["parts"], result["whole"])
            if rank == 0:
                exported, expected = (
                    load_file(tmp_path / f"{kind}-{layout}" / "model.safetensors") for kind in ("parts", "whole")
                )
                assert_close(exported, expected)
                for name, value in exported.items():  # what an engine gets, and what is written at the end
                    assert torch.equal(result["handed"][name], value), name


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """To this share of each tensor's norm. Adam divides rounding by what is small: a hundredfold where all is."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        began_at_nothing = ".lora_B." in name or name.startswith(("value.head.", "value.weight"))
        allowed = (100 if began_at_nothing else 1) * tolerance * float(value.norm().clamp(min=1e-3))
        assert float((found[name] - value).norm()) <= allowed, name
