"""Reference directions: the gradient that an episode's own gradient is held against."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ippo.distributed import everywhere, own_part, total, total_of
from ippo.errors import UsageError, require
from ippo.influence.in_step import in_step
from ippo.influence.inputs import check_direction, check_gold, check_rows
from ippo.influence.parameters import spread, trainable
from ippo.influence.plain_gradients import over_ranks, plain_gradients
from ippo.modes import evaluation_mode

Losses = Callable[[nn.Module, Any], Tensor]
"""``losses(module, batch) -> [n]``: one differentiable loss for each row of the batch."""


class Buffer(NamedTuple):
    """What is being scored, for directions that are made from it."""

    losses: Losses
    batches: Iterable[Any]


class Direction(ABC):
    """Anything that can say which way is up, at the module's present parameters.

    Attributes:
        needs_buffer: whether it is made from the episodes that are scored, losses and all.
        mean_loss: the loss that it is the gradient of, where it was last computed; None before that, and where it is
            the gradient of none.
    """

    needs_buffer = False
    mean_loss: float | None = None

    @abstractmethod
    def compute(self, module: nn.Module, buffer: Buffer | None = None) -> dict[str, Tensor]:
        """A tensor for every trainable parameter, keyed and shaped like ``module.named_parameters()``.

        Args:
            module: where the gradient is taken.
            buffer: what is about to be scored.
        """

    def bind(self, host: Any) -> Direction:
        """This direction with what it left open taken from whoever runs the training.

        Args:
            host: a LightningModule or what stands for it, asked for ``validation_direction()``, ``prepare_batches``,
                ``objective``, ``optimizers()`` and the like only where a direction needs them.
        """
        return self


class ValidationDirection(Direction):
    """The direction of I-PPO: the gradient of the mean loss on gold examples (arXiv 2604.01597, section 3).

    Args:
        batches: micro-batches of gold examples, anything ``loss`` understands; read again at every ``compute``. Left
            out, they are the gold solutions of whoever runs the training.
        loss: ``loss(module, batch) -> [n]``, one number an example, e.g. the SFT loss.

    Attributes:
        row_losses: [n] of this rank's examples, where the direction was last computed.

    Example:
        >>> module = nn.Linear(1, 1, bias=False)
        >>> squares = lambda module, x: (module(x) ** 2 / 2).flatten()  # gradient of a row: weight * x ** 2
        >>> _ = nn.init.constant_(module.weight, 3.0)
        >>> ValidationDirection([torch.tensor([[1.0], [2.0]])], squares).compute(module)  # 3 * (1 + 4) / 2
        {'weight': tensor([[7.5000]])}
    """

    def __init__(self, batches: Iterable[Any] | None = None, loss: Losses | None = None) -> None:
        given = (batches is None) == (loss is None)
        require(given, "ValidationDirection", "half of batches and loss", "give both, or neither to take the module's")
        if batches is not None:
            check_gold(batches, loss)
        self.batches, self.loss = batches, loss
        self.row_losses: Tensor | None = None

    def bind(self, host: Any) -> Direction:
        if self.batches is None:
            return host.validation_direction()
        prepare = getattr(host, "prepare_batches", None)  # a trainer knows on which device they belong
        return self if prepare is None else ValidationDirection(prepare(self.batches), self.loss)

    def compute(self, module: nn.Module, buffer: Buffer | None = None) -> dict[str, Tensor]:
        """The mean gradient over all examples of all ranks.

        Raises:
            UsageError: if there is no example, or the gradient is not finite.
        """
        if self.batches is None or self.loss is None:
            raise UsageError("direction", "ValidationDirection()", "give it batches and a loss, or bind it to a module")
        self.row_losses, gradient = losses_and_mean_gradient(module, self.loss, self.batches)
        self.mean_loss = mean_over_ranks(self.row_losses)
        return gradient


def mean_gradient(module: nn.Module, losses: Losses, batches: Iterable[Any]) -> dict[str, Tensor]:
    """The gradient of the mean loss over all rows of all batches and ranks.

    Raises:
        UsageError: if there is no row.
    """
    return losses_and_mean_gradient(module, losses, batches)[1]


def losses_and_mean_gradient(
    module: nn.Module, losses: Losses, batches: Iterable[Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """[n] the losses of this rank's rows, and the gradient of the mean loss over all rows of all batches and ranks.

    Raises:
        UsageError: if there is no row.
    """
    parameters = trainable(module)
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    found = [torch.zeros(0, device=next(iter(sums.values())).device)]
    for batch, counts in in_step(module, batches):
        with torch.enable_grad(), evaluation_mode(module, checkpointing=True):
            values = losses(module, batch)
            check_rows(values, "loss of the direction")
            if values.requires_grad or spread(module):
                loss = values.sum() if counts else 0 * values.sum()
                for name, gradient in plain_gradients(parameters, loss).items():
                    sums[name] += gradient
        if counts:
            found.append(values.detach().float())
    rows = torch.cat(found)
    count = total_of(len(rows), rows.device)
    require(count > 0, "direction", "no example", "its batches are empty: give it at least one row")
    return rows, {name: over_ranks(one, parameters) / count for name, one in sums.items()}


def mean_over_ranks(values: Tensor) -> float:
    """Of all ranks' numbers the mean."""
    return float(total(values.sum())) / total_of(len(values), values.device)


class FittedDirection(Mapping[str, Tensor]):
    """A direction that fits a module. Every backend reads it here, each parameter's part where it needs it, so that one
    that is kept in another precision than the module's is cast one parameter at a time.

    Args:
        parts: a tensor for each parameter; of one that is sharded, whole or sharded alike.
        parameters: of the module, by the same names.
    """

    def __init__(self, parts: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
        self._parts, self._parameters = parts, parameters

    def __getitem__(self, name: str) -> Tensor:
        parameter = self._parameters[name]
        return self._parts[name].to(device=parameter.device, dtype=parameter.dtype)

    def __contains__(self, name: object) -> bool:
        return name in self._parameters

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def is_for(self, parameters: Mapping[str, Tensor]) -> bool:
        """Whether it was made for these very parameters, and all of them."""
        same = (own is parameters.get(name) for name, own in self._parameters.items())
        return len(self) == len(parameters) and all(same)


def resolve(
    direction: Direction | Mapping[str, Tensor], module: nn.Module, buffer: Buffer | None = None
) -> FittedDirection:
    """Compute the direction if need be, and check that it fits the module.

    A mapping may also hold parameters that are frozen just now: of a direction for the whole module, a scorer that is
    restricted to some parameters takes its part.

    Raises:
        UsageError: if a key misses or exceeds the trainable parameters, a shape differs, or a value is not finite.
    """
    if isinstance(direction, FittedDirection) and direction.is_for(trainable(module)):  # held, and checked when made
        return direction
    check_direction(direction)
    tensors = dict(direction) if isinstance(direction, Mapping) else direction.compute(module, buffer)
    parameters, known = trainable(module), {name for name, _ in module.named_parameters()}
    missing, extra = sorted(parameters.keys() - tensors.keys()), sorted(tensors.keys() - known)
    remedy = "use the names of module.named_parameters() that require a gradient"
    require(
        not missing, "direction", f"without {missing[:3]}", f"it misses {len(missing)} trainable parameters; {remedy}"
    )
    require(not extra, "direction", f"with {extra[:3]}", f"{len(extra)} of its keys are no parameter; {remedy}")
    for name, parameter in parameters.items():
        tensor, argument = tensors[name], f"direction[{name!r}]"
        shape, device = tuple(tensor.shape), str(tensor.device)
        require(shape == parameter.shape, argument, f"shape {shape}", f"the parameter has {tuple(parameter.shape)}")
        require(tensor.device == parameter.device, argument, f"on {device}", f"move it to {parameter.device}")
    finite = [_is_finite(own_part(tensors[name])) for name in parameters]
    if spread(module):  # one rank's shards may be, and another's not
        finite = everywhere(finite, next(iter(parameters.values())).device)
    for name, fits in zip(parameters, finite, strict=True):
        remedy = "mend the reference loss: scores along it would mean nothing"
        require(fits, f"direction[{name!r}]", "NaN or Inf", remedy)
    return FittedDirection(tensors, parameters)


def _is_finite(tensor: Tensor) -> bool:
    """A sum, which is cheap, is finite only if all of it is; that of finite numbers may still overflow."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())
