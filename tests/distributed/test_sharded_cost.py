"""What scoring a model in parts sends, and what it holds, beyond what FSDP2 itself does."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from architectures import Rollout, losses, roll_out
from launch import RANKS, on_ranks
from sharded_models import MODELS, by_block
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from ippo.influence import ExactScorer, ValidationDirection
from ippo.influence.hooks import hooked_backward
from ippo.influence.layer_formulas import find_layer_formulas
from ippo.influence.parameters import Subset, choose, scored, trainable

MICRO_BATCHES = 3


class Sent(TorchDispatchMode):
    """While active, counts collectives by their kind."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it comes back as what it is made of
        name = func._opname
        if func.namespace in ("c10d", "_c10d_functional") and "wait" not in name and "wrap" not in name:
            self.counts["scatter" if "scatter" in name else "gather" if "gather" in name else "reduce"] += 1
        return func(*args, **(kwargs or {}))


def sent(run: Callable[[], Any]) -> dict[str, int]:
    """How often collectives of each kind run."""
    with Sent() as mode:
        run()
    return dict(mode.counts)


class Held:
    """While active, the most numbers of gathered tensors that are alive at once, and how many are at the end."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.most, self._alive = 0, weakref.WeakSet[Tensor]()
        gather = DTensor.full_tensor

        def full_tensor(shards: DTensor, **options: Any) -> Tensor:
            found = gather(shards, **options)
            self._alive.add(found)
            self.most = max(self.most, self.now)
            return found

        patch.setattr(DTensor, "full_tensor", full_tensor)

    @property
    def now(self) -> int:
        return sum(tensor.numel() for tensor in self._alive)


def measured(rank: int, subset: Subset) -> dict[str, Any]:
    model = MODELS["llama, untied"]()
    torch.manual_seed(1)
    batches: list[Rollout] = roll_out(model, [3, 1, 4, 2, 3, 2], [4, 3, 6, 2, 5, 1]).chunks(2)
    model = by_block(model)
    direction = ValidationDirection(batches[:1], losses).compute(model)
    scorer = ExactScorer(parameters=subset)
    for _ in range(2):  # rows are probed in the first passes, and in those that look new
        sent(lambda: scorer.score(model, losses, batches, direction))

    with scored(model, subset):
        formulas = find_layer_formulas(model)
        sizes = {name: parameter.numel() for name, parameter in trainable(model).items()}
        largest = max(sum(sizes[name] for name in formula.names.values()) for formula in formulas)

        def plainly() -> None:
            for batch in batches:
                hooked_backward(model, lambda batch=batch: losses(model, batch), lambda *_: None)

        own = sent(plainly)
    with pytest.MonkeyPatch.context() as patch:
        held = Held(patch)
        found = sent(lambda: scorer.score(model, losses, batches, direction))
    return {
        "sent": found,
        "own": own,
        "chosen": len(choose(model, subset)),
        "largest": largest,
        "held": held.most,
        "left": held.now,
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    def run(rank: int) -> list[dict[str, Any]]:
        dist.init_process_group("gloo", rank=rank, world_size=RANKS)
        return [measured(rank, None), measured(rank, 1)]

    return on_ranks(run, tmp_path_factory.mktemp("cost"))


@pytest.mark.parametrize("subset", ["all parameters", "the last block"])
def test_each_layers_direction_is_gathered_once_a_micro_batch_or_once_and_kept(both: list[Any], subset: str) -> None:
    for rank in both:
        found = rank[subset == "the last block"]
        gathers = found["chosen"] * (1 if subset == "the last block" else MICRO_BATCHES)
        assert found["sent"]["gather"] == found["own"]["gather"] + gathers
        # One number each: how many micro-batches there are; whether the direction is finite; of a micro-batch whether
        # any rank doubts its rows.
        assert found["sent"]["reduce"] == 2 + MICRO_BATCHES
        assert found["sent"].keys() == {"gather", "reduce"}
        assert found["own"].keys() == {"gather"}


def test_one_layers_direction_is_whole_at_a_time(both: list[Any]) -> None:
    for rank in both:
        everything, _ = rank
        assert 0 < everything["held"] <= everything["largest"]
        assert everything["left"] == 0
