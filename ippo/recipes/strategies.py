"""How the processes of a run share its work: Lightning's strategies, and a short name for one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.strategies import ModelParallelStrategy

from ippo.errors import require
from ippo.models.checkpoints import require_sound_folder
from ippo.ppo.requirements import require_strategy

_SHARDED = "with models in parts (fsdp2)"


class FSDP2(ModelParallelStrategy):
    """Lightning's ``ModelParallelStrategy`` over all processes: each keeps a share of every parameter, its gradient and
    its optimizer state."""

    def __init__(self, **options: Any) -> None:
        super().__init__(tensor_parallel_size=1, **options)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes  # which only the trainer has told
        super().setup_environment()


def strategy_of(options: Namespace) -> dict[str, Any]:
    """The trainer's arguments that ``--trainer.strategy`` asks for.

    Args:
        options: all of a recipe's.

    Raises:
        UsageError: if it is one that nothing here is tested with, or another option does not go with it.
    """
    asked = options.trainer.strategy
    require_strategy(asked)
    found = FSDP2() if asked == "fsdp2" else asked
    if shards(found):
        remedy = f"a step that is compiled for a whole policy cannot run {_SHARDED}: use hf, vllm or vllm_server"
        require(options.engine != "compiled", "engine", options.engine, remedy)
        compiles = options.models.compile_layers
        require(not compiles, "models.compile_layers", compiles, f"it is not tried {_SHARDED}: use false")
        remedy = "a run could not go on from one file: use true; the word export makes one directory of a checkpoint"
        require(found._save_distributed_checkpoint, "save_distributed_checkpoint", False, remedy)
        return {"strategy": found, "inference_mode": False}  # what is gathered in a test must serve a backward later
    return {"strategy": found}


def shards(strategy: Any) -> bool:
    """Whether a strategy leaves each process a part of the models."""
    return isinstance(strategy, ModelParallelStrategy)


def require_in_parts(checkpoint: Path, parts: bool = True) -> None:
    """Refuse a checkpoint that the strategy does not read.

    Args:
        checkpoint: a directory where each rank has left a part of the models, else a file.
        parts: what the strategy reads.

    Raises:
        UsageError: if it is the other.
    """
    remedy = "its run trained whole models: use --trainer.strategy ddp" if parts else "use --trainer.strategy fsdp2"
    require(checkpoint.is_dir() == parts, "checkpoint", str(checkpoint), remedy)
    if parts:
        require_sound_folder(checkpoint)
