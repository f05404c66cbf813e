"""Reference directions other than gold examples: the buffer's own mean, its expected return, and Adam's view of any."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ippo.distributed import total
from ippo.errors import UsageError, require
from ippo.influence.direction import Buffer, Direction, Losses, ValidationDirection, mean_gradient
from ippo.influence.parameters import trainable

JudgedBy = Literal["reward", "check"]
"""What answers to the validation problems are held against."""


class BufferDirection(Direction):
    """The direction of DTV (arXiv 2609.35072): the mean gradient of the very episodes that are scored.

    Args:
        leave_one_out: hold each episode against the mean of the *others* (DTV-Loo), so that an episode with a large
            gradient does not vote for itself. The scorer then needs each gradient's norm as well.

    Example:
        >>> module = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(module.weight, 3.0)
        >>> squares = lambda module, x: (module(x) ** 2 / 2).flatten()  # gradient of a row: weight * x ** 2
        >>> BufferDirection().compute(module, Buffer(squares, [torch.tensor([[1.0], [2.0]])]))  # 3 * (1 + 4) / 2
        {'weight': tensor([[7.5000]])}
    """

    needs_buffer = True

    def __init__(self, leave_one_out: bool = False) -> None:
        self.leave_one_out = leave_one_out

    def compute(self, module: nn.Module, buffer: Buffer | None = None) -> dict[str, Tensor]:
        """The mean gradient of the buffer, over all ranks.

        Raises:
            UsageError: if the buffer is not given, is empty, or can be read only once.
        """
        return mean_gradient(module, *_twice(buffer, type(self).__name__))


class ReturnDirection(Direction):
    """The direction of IIF (arXiv 2505.19281): the gradient of -E[log pi(y | x) A], the policy's expected return.

    Args:
        on: ``"buffer"``, the episodes that are scored, each token with its own advantage (f_return);
            ``"validation"``, fresh answers to the validation prompts, each whole answer with the advantage of its last
            token (the form for RLHF).
        judged_by: of ``on="validation"``, what those answers are held against: ``"reward"``, the training's own, or
            ``"check"``, the task's truth: where the reward can be gamed, a check that is trusted on a few problems
            guards all others. Neither asks for gold solutions, so that none can be of another style than the policy's.
        loss: ``loss(module, batch) -> [n]``, the -log pi A of each episode. Left out, it and the batches come from
            whoever runs the training: ``objective.returns``, or ``objective.answer_returns`` of
            ``validation_rollout()``.
        batches: the episodes of ``on="validation"``, or a function that samples them.
    """

    def __init__(
        self,
        on: Literal["buffer", "validation"] = "buffer",
        loss: Losses | None = None,
        batches: Any = None,
        judged_by: JudgedBy = "reward",
    ) -> None:
        require(on in ("buffer", "validation"), "on", on, "use buffer or validation")
        require(judged_by in get_args(JudgedBy), "judged_by", judged_by, "use reward or check")
        remedy = "the buffer has the training's rewards: use on='validation'"
        require(judged_by == "reward" or on == "validation", "judged_by", judged_by, remedy)
        require(judged_by == "reward" or loss is None, "judged_by", judged_by, "your batches are judged already")
        self.on, self.loss, self.batches, self.judged_by = on, loss, batches, judged_by
        self.needs_buffer = on == "buffer"

    def bind(self, host: Any) -> Direction:
        if self.loss is not None:
            return self
        if self.on == "buffer":
            return ReturnDirection("buffer", host.objective.returns)
        rollout = host.validation_rollout
        rollout = partial(rollout, judged_by="check") if self.judged_by == "check" else rollout
        return ReturnDirection("validation", host.objective.answer_returns, rollout)

    def compute(self, module: nn.Module, buffer: Buffer | None = None) -> dict[str, Tensor]:
        """The mean gradient of the returns, over all ranks.

        Raises:
            UsageError: if the loss or the episodes are missing.
        """
        if self.loss is None:
            raise UsageError("direction", "ReturnDirection()", "give it a loss, or bind it to a module")
        if self.on == "buffer":
            return mean_gradient(module, self.loss, _twice(buffer, "ReturnDirection").batches)
        require(self.batches is not None, "direction", "ReturnDirection(on='validation')", "give it batches")
        batches = self.batches() if callable(self.batches) else self.batches
        return mean_gradient(module, self.loss, batches)


class AdamPreconditioned(Direction):
    """Any direction as Adam would follow it: V / (sqrt(v) + eps), v the optimizer's second moment, bias-corrected.

    Scores then say what a step of the training's own optimizer would do (LESS, arXiv 2402.04333, section 3.1, where
    the first moment is part of the episode's side). Until the optimizer has taken a step v is unknown, and the
    direction stays as it is. A parameter the optimizer does not train keeps its part as it is, too.

    Args:
        direction: what is preconditioned; the gold validation set by default.
        optimizer: whose second moments are read; left out, that of whoever runs the training.
        eps: keeps the quotient finite; in units of the gradient.
    """

    def __init__(
        self,
        direction: Direction | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        eps: float = 1e-8,
    ) -> None:
        require(eps > 0, "eps", eps, "use a number above 0")
        alone = not getattr(direction, "leave_one_out", False)
        require(alone, "direction", "BufferDirection(leave_one_out=True)", "leaving one out takes the plain gradient")
        self.direction = direction if direction is not None else ValidationDirection()
        self.optimizer, self.eps = optimizer, eps
        self.needs_buffer = self.direction.needs_buffer

    def bind(self, host: Any) -> Direction:
        optimizer = self.optimizer
        if optimizer is None:
            optimizer = host.optimizers()
            require(isinstance(optimizer, torch.optim.Optimizer), "optimizer", optimizer, "name one of them in code")
        return AdamPreconditioned(self.direction.bind(host), optimizer, self.eps)

    def compute(self, module: nn.Module, buffer: Buffer | None = None) -> dict[str, Tensor]:
        if self.optimizer is None:
            raise UsageError("direction", "AdamPreconditioned()", "give it an optimizer, or bind it to a module")
        tensors, moments = self.direction.compute(module, buffer), second_moments(self.optimizer)
        self.mean_loss = self.direction.mean_loss
        parameters = trainable(module)
        return {
            name: tensor / (moments[parameters[name]].sqrt() + self.eps) if parameters[name] in moments else tensor
            for name, tensor in tensors.items()
        }


def without_adam(direction: Any) -> Any:
    """A direction as it is, where this is Adam's view of it; any other one unchanged."""
    return direction.direction if isinstance(direction, AdamPreconditioned) else direction


def second_moments(optimizer: torch.optim.Optimizer) -> dict[Tensor, Tensor]:
    """Adam's bias-corrected second moment of every parameter that has taken a step.

    Raises:
        UsageError: if the optimizer keeps none.
    """
    found = {}
    for group in optimizer.param_groups:
        require(
            "betas" in group, "optimizer", type(optimizer).__name__, "it keeps no second moments: use Adam or AdamW"
        )
        for parameter in group["params"]:
            state: Mapping[str, Any] = optimizer.state.get(parameter, {})
            if "exp_avg_sq" in state:
                found[parameter] = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
    return found


def leaves_one_out(direction: Direction | Mapping[str, Tensor]) -> bool:
    """Whether each episode is to be held against the others alone."""
    return isinstance(direction, BufferDirection) and direction.leave_one_out


def leave_one_out(scores: Tensor, squared_norms: Tensor) -> Tensor:
    """From dot products with the mean of all gradients to those with the mean of the others (DTV-Loo, 2609.35072).

    Args:
        scores: [n] <g_i, mean of all g>; the mean is over all ranks.
        squared_norms: [n] <g_i, g_i>.

    Returns:
        [n] (N s_i - |g_i| ** 2) / (N - 1), with N episodes on all ranks.

    Raises:
        UsageError: if there is one episode only.

    Example:
        >>> leave_one_out(torch.tensor([2.0, 6.0]), torch.tensor([1.0, 9.0]))  # gradients 1 and 3, of mean 2
        tensor([3., 3.])
    """
    n = int(total(torch.tensor(len(scores), device=scores.device)))
    require(n > 1, "direction", "BufferDirection(leave_one_out=True)", "it needs at least two episodes")
    return (n * scores - squared_norms) / (n - 1)


def _twice(buffer: Buffer | None, name: str) -> Buffer:
    if buffer is None:
        raise UsageError("direction", f"{name}()", "it is made from the buffer that is scored: pass it to a scorer")
    batches: Iterable[Any] = buffer.batches
    once = isinstance(batches, Iterator)
    require(not once, "batches", type(batches).__name__, f"{name} reads them before they are scored: pass a list")
    return buffer
