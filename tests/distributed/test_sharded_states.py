"""Models in parts: half precision, directions in checkpoints, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
from architectures import losses, roll_out
from launch import RANKS, on_ranks
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from parts import MakeTrainer
from sharded_models import MODELS, by_block
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from ippo.callbacks import InfluenceFilterCallback
from ippo.callbacks.influence.held_direction import HeldDirection
from ippo.errors import UsageError
from ippo.influence import ExactScorer, LookaheadScorer, ValidationDirection, score_and_backward
from ippo.influence.parameters import trainable

Found = dict[str, Any]


def started(folder: Path, run: Callable[[int], Any], ranks: int = RANKS) -> list[Any]:
    """What each rank finds."""

    def on_rank(rank: int) -> Any:
        dist.init_process_group("gloo", rank=rank, world_size=ranks)
        return run(rank)

    return on_ranks(on_rank, folder, ranks=ranks)


def llama() -> tuple[Any, Any, Any]:
    """With episodes and gold rows."""
    model = MODELS["llama, tied"]()
    torch.manual_seed(1)
    return model, roll_out(model, [3, 1, 4, 2], [4, 3, 6, 2]), roll_out(model, [3, 4], [4, 3])


def test_in_bfloat16_scores_are_those_of_float32_within_its_rounding(tmp_path: Path) -> None:
    def run(rank: int) -> Found:
        model, episodes, gold = llama()
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        model, own = by_block(model, mp_policy=policy), torch.arange(rank, 4, RANKS)
        along = ValidationDirection([gold.rows(torch.tensor([rank]))], losses)
        mine = episodes.rows(own)
        ExactScorer(parameters=1).score(model, losses, [mine], along)  # the first pass of all, with all else frozen
        losses(model, mine).sum().backward()
        gradients = {name: parameter.grad for name, parameter in trainable(model).items()}
        assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}  # as they are reduced
        scores = ExactScorer().score(model, losses, [mine], along)
        assert all(parameter.grad is gradients[name] for name, parameter in trainable(model).items())
        return {"own": own, "scores": scores}

    model, episodes, gold = llama()
    expected = ExactScorer().score(model, losses, [episodes], ValidationDirection([gold], losses))
    for rank in started(tmp_path, run):
        assert not torch.equal(rank["scores"], expected[rank["own"]])
        assert (rank["scores"] - expected[rank["own"]]).abs().max() < 0.03 * expected.abs().max()


class Scale(nn.Module):
    """A layer without a formula of its own: its parameters are read when its gradient arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.randn(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x * self.factors)


def test_a_layer_may_be_gathered_by_itself(tmp_path: Path) -> None:
    def squares(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return module(batch).square().sum((1, 2))

    def made() -> tuple[nn.Sequential, torch.Tensor]:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), Scale(), nn.LayerNorm(5), nn.Linear(5, 3)), torch.randn(4, 2, 4)

    def run(rank: int) -> Found:
        (module, batch), mesh = made(), init_device_mesh("cpu", (RANKS,))
        for layer in module[:3]:
            fully_shard(layer, mesh=mesh)
        fully_shard(module, mesh=mesh)
        own = torch.arange(rank, 4, RANKS)
        scorer, direction = ExactScorer(), ValidationDirection([batch[own]], squares)
        return {"own": own, "scores": [scorer.score(module, squares, [batch[own]], direction) for _ in range(2)]}

    module, batch = made()
    expected = ExactScorer("loop").score(module, squares, [batch], ValidationDirection([batch], squares))
    for rank in started(tmp_path, run):
        for scores in rank["scores"]:
            torch.testing.assert_close(
                scores, expected[rank["own"]], rtol=1e-5, atol=1e-5 * float(expected.abs().max())
            )


def test_a_held_direction_is_in_a_checkpoint_whole_and_is_taken_up_by_any_number_of_ranks(tmp_path: Path) -> None:
    def held(gold: list[Any], state: Any = None) -> HeldDirection:
        direction = HeldDirection(ValidationDirection(gold, losses), every=9)
        direction.load_state_dict(state or {})
        return direction

    def run(rank: int) -> Found:
        model, _, gold = llama()
        model, gold = by_block(model), [gold.rows(torch.tensor([rank]))]
        first = held(gold)
        before = dict(first.at(model, 1))  # type: ignore[call-overload]
        states = [first.state_dict()]
        dist.broadcast_object_list(states)  # a checkpoint is the first rank's
        after = held(gold, states[0]).at(model, 2)
        for name, part in before.items():
            assert isinstance(after[name], DTensor)  # type: ignore[index]
            assert torch.equal(after[name].to_local(), part.to_local())  # type: ignore[index]
        return states[0]["held"]["direction"]

    model, _, gold = llama()
    for direction in started(tmp_path, run):
        state = {**held([gold]).state_dict(), "held": {"batch": 1, "direction": direction, "loss": 0.0}}
        taken_up = held([gold], state).at(model, 2)
        for name, expected in ValidationDirection([gold], losses).compute(model).items():
            torch.testing.assert_close(taken_up[name], expected, rtol=1e-5, atol=1e-7)  # type: ignore[index]


@contextmanager
def refused(into: list[str]) -> Iterator[None]:
    with pytest.raises(UsageError) as refusal:
        yield
    into.append(str(refusal.value))


def test_what_takes_whole_parameters_is_refused_by_name(tmp_path: Path) -> None:
    def run(rank: int) -> list[str]:
        found: list[str] = []
        model, episodes, gold = llama()
        model, along = by_block(model), {}
        along = ValidationDirection([gold], losses).compute(model)
        for backend in ("jvp", "loop", "fd"):
            with refused(found):
                ExactScorer(backend).score(model, losses, [episodes], along)  # type: ignore[arg-type]
            with refused(found):
                ExactScorer(backend).check(model)  # type: ignore[arg-type]
        with refused(found):
            ExactScorer().token_scores(model, losses, [episodes], along)
        with refused(found):
            LookaheadScorer().check(model)
        with refused(found):
            score_and_backward(model, losses, episodes, along, lambda scores: scores)
        return found

    for rank in started(tmp_path, run):
        assert len(rank) == 9
        names = ("jvp", "jvp", "loop", "loop", "fd", "fd", "token scores", "LookaheadScorer", "score_and_backward")
        for name, text in zip(names, rank, strict=True):
            assert name in text
            assert "use ExactScorer('auto'), which scores them by hooks, or train with strategy=ddp" in text


def test_what_hooks_cannot_cover_and_ranks_without_a_batch_are_refused_by_name(tmp_path: Path) -> None:
    def squares(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return module(batch).square().sum((1, 2))

    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.other = nn.Linear(4, 5), nn.Linear(5, 3, bias=False)

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(self.inner(batch), self.other.weight)

    def run(rank: int) -> list[str]:
        found: list[str] = []
        torch.manual_seed(0)
        mesh = init_device_mesh("cpu", (RANKS,))
        module, batch = fully_shard(Outside(), mesh=mesh), torch.randn(3, 2, 4)
        along = {name: torch.ones(parameter.shape) for name, parameter in trainable(module).items()}
        with refused(found):
            ExactScorer().score(module, squares, [batch], along)
        module = fully_shard(nn.Linear(4, 5), mesh=mesh)
        along = {name: torch.ones(parameter.shape) for name, parameter in trainable(module).items()}
        with refused(found):
            ExactScorer().score(module, squares, [batch] if rank else [], along)
        with refused(found):
            ValidationDirection([batch] if rank else [], squares).compute(module)
        assert len(ExactScorer().score(module, squares, [], along)) == 0
        return found

    for outside, *without in started(tmp_path, run):
        assert "it cannot cover 'other.weight': it is used outside the forward of the layer that owns it" in outside
        assert "FSDP2 leaves parts of it to each rank: score other `parameters`, or train with strategy=ddp" in outside
        assert all("batches = 'none on one of the ranks'" in one for one in without)


@pytest.mark.parametrize("kind", [FSDPStrategy, DeepSpeedStrategy])
def test_strategies_that_flatten_parameters_are_refused_by_name(make_trainer: MakeTrainer, kind: type) -> None:
    filtering = InfluenceFilterCallback()
    trainer = make_trainer(filtering)
    trainer._accelerator_connector.strategy = kind.__new__(kind)  # they take GPUs, or a package, to begin
    with pytest.raises(UsageError, match=f"strategy = '{kind.__name__}': it flattens or moves parameters"):
        filtering.setup(trainer, L.LightningModule(), "fit")


def test_any_other_sharding_is_refused_by_name(tmp_path: Path) -> None:
    def run(rank: int) -> list[str]:
        found: list[str] = []

        def check(module: Any) -> None:
            with refused(found):
                trainable(module)

        layers = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
        check(FullyShardedDataParallel(nn.Linear(4, 5), use_orig_params=True, device_id=torch.device("cpu")))
        check(FullyShardedDataParallel(nn.Linear(4, 5), device_id=torch.device("cpu")))
        check(
            fully_shard(nn.Linear(4, 5), mesh=init_device_mesh("cpu", (1, RANKS), mesh_dim_names=("copies", "parts")))
        )
        layers[1] = fully_shard(layers[1], mesh=init_device_mesh("cpu", (RANKS,)))
        check(layers)
        module = fully_shard(nn.Linear(4, 5), mesh=init_device_mesh("cpu", (RANKS,)))
        module.set_gradient_divide_factor(1.0)
        check(module)
        zero = nn.Linear(4, 5)
        zero.weight.ds_id = 0  # type: ignore[assignment]  # as DeepSpeed's third stage marks what it has taken apart
        check(zero)
        return found

    for rank in started(tmp_path, run):
        *others, factor, zero = rank
        assert len(others) == 4
        remedy = "scores go with FSDP2 alone, all trainable parameters over all ranks: use ModelParallelStrategy"
        assert all("module = 'with sharded" in one and remedy in one for one in (*others, zero))
        assert "gradient_divide_factor = 1.0: leave set_gradient_divide_factor out" in factor
