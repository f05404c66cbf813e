"""Reference directions: the gradient that an episode's own gradient is held against."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ippo.errors import require
from ippo.influence.parameters import trainable
from ippo.modes import evaluation_mode
from ippo.ranks import total

Losses = Callable[[nn.Module, Any], Tensor]
"""``losses(module, batch) -> [n]``: one differentiable loss for each row of the batch."""


class Direction(ABC):
    """Anything that can say which way is up, at the module's present parameters."""

    @abstractmethod
    def compute(self, module: nn.Module) -> dict[str, Tensor]:
        """A tensor for every trainable parameter, keyed and shaped like ``module.named_parameters()``."""


class ValidationDirection(Direction):
    """The direction of I-PPO: the gradient of the mean loss on gold examples (arXiv 2604.01597, section 3).

    Args:
        batches: micro-batches of gold examples, anything ``loss`` understands; read again at every ``compute``.
        loss: ``loss(module, batch) -> [n]``, one number an example, e.g. the SFT loss.

    Example:
        >>> module = nn.Linear(1, 1, bias=False)
        >>> squares = lambda module, x: (module(x) ** 2 / 2).flatten()  # gradient of a row: weight * x ** 2
        >>> _ = nn.init.constant_(module.weight, 3.0)
        >>> ValidationDirection([torch.tensor([[1.0], [2.0]])], squares).compute(module)  # 3 * (1 + 4) / 2
        {'weight': tensor([[7.5000]])}
    """

    def __init__(self, batches: Iterable[Any], loss: Losses) -> None:
        self.batches, self.loss = batches, loss

    def compute(self, module: nn.Module) -> dict[str, Tensor]:
        """The mean gradient over all examples of all ranks.

        Raises:
            UsageError: if there is no example, or the gradient is not finite.
        """
        parameters = trainable(module)
        sums = [torch.zeros_like(parameter) for parameter in parameters.values()]
        count = 0
        for batch in self.batches:
            with torch.enable_grad(), evaluation_mode(module):
                losses = self.loss(module, batch)
                gradients = torch.autograd.grad(losses.sum(), list(parameters.values()), allow_unused=True)
            for accumulated, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    accumulated += gradient
            count += len(losses)
        examples = int(total(torch.tensor(count, device=sums[0].device)))
        require(examples > 0, "direction", "ValidationDirection", "it has no gold example: give it at least one batch")
        return {name: total(gradient) / examples for name, gradient in zip(parameters, sums, strict=True)}


def resolve(direction: Direction | Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Compute the direction if need be, and check that it fits the module.

    Raises:
        UsageError: if a key misses or exceeds the trainable parameters, a shape differs, or a value is not finite.
    """
    tensors = dict(direction) if isinstance(direction, Mapping) else direction.compute(module)
    parameters = trainable(module)
    missing, extra = sorted(parameters.keys() - tensors.keys()), sorted(tensors.keys() - parameters.keys())
    remedy = "use the names of module.named_parameters() that require a gradient"
    require(
        not missing, "direction", f"without {missing[:3]}", f"it misses {len(missing)} trainable parameters; {remedy}"
    )
    require(
        not extra, "direction", f"with {extra[:3]}", f"{len(extra)} of its keys are no trainable parameter; {remedy}"
    )
    for name, parameter in parameters.items():
        tensor = tensors[name]
        shape = f"shape {tuple(tensor.shape)}"
        require(
            tensor.shape == parameter.shape,
            f"direction[{name!r}]",
            shape,
            f"the parameter has {tuple(parameter.shape)}",
        )
        finite = bool(torch.isfinite(tensor).all())
        require(
            finite, f"direction[{name!r}]", "NaN or Inf", "mend the reference loss: scores along it would mean nothing"
        )
    return {name: tensors[name].to(parameter) for name, parameter in parameters.items()}
