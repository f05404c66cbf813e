"""The mode a module must be in while it is only looked at."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn


@contextmanager
def evaluation_mode(module: nn.Module, checkpointing: bool = False) -> Iterator[None]:
    """Dropout off in every submodule, and afterwards each one's own mode again.

    Args:
        module: what is looked at.
        checkpointing: whether layers that are to checkpoint their activations do so; Hugging Face's do it in training
            mode alone, so their own flag stays there, while what they hold, and they as they run, are in evaluation
            mode.
    """
    modes = {part: part.training for part in module.modules()}
    if any(modes.values()):
        module.eval()
    layers = [part for part in modes if checkpointing and checkpoints_itself(part)]
    own = [layer._gradient_checkpointing_func for layer in layers]
    for layer in layers:
        run_as_its_parts(layer)
        layer.training = True
    try:
        yield
    finally:
        for layer, function in zip(layers, own, strict=True):
            layer._gradient_checkpointing_func = function
        for part, mode in modes.items():
            if part.training != mode:
                object.__setattr__(part, "training", mode)  # a module's own looks for parameters and parts first


def uncompiled() -> AbstractContextManager[Any]:
    """What is compiled runs uncompiled. Where torch's compiler was never imported, nothing can be: importing it takes
    seconds."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def checkpoints_itself(part: nn.Module) -> bool:
    """Whether a module is a layer of Hugging Face's that was told to checkpoint its activations. Larger parts have that
    flag as well, and use their mode for other things: OPT's decoder skips layers at random."""
    known = any(base.__name__ == "GradientCheckpointingLayer" for base in type(part).__mro__)
    return known and bool(part.gradient_checkpointing)


def run_as_its_parts(layer: Any) -> None:
    """Let a layer that checkpoints itself have, while it runs, the mode of what it holds: some layers (OPT's) ask it
    whether to drop out. A copy of the layer does the same for itself."""
    layer._gradient_checkpointing_func = partial(_checkpointed, layer, layer._gradient_checkpointing_func)


def _checkpointed(layer: nn.Module, checkpoint: Any, run: Any, *args: Any) -> Any:
    return checkpoint(partial(_in_the_mode_of_its_parts, layer, run), *args)


def _in_the_mode_of_its_parts(layer: nn.Module, run: Any, *args: Any) -> Any:
    outside = layer.training
    layer.training = any(part.training for part in layer.children())
    try:
        return run(*args)
    finally:
        layer.training = outside
