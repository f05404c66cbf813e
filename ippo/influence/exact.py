"""Exact influence scores: the dot product of each episode's gradient with a direction, without storing gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ippo.errors import UsageError, require
from ippo.influence.backends import fd_scores, ghost_scores, ghost_scores_and_norms, jvp_scores
from ippo.influence.choice import Choice, OneBatch, why_no_forward_mode
from ippo.influence.direction import Buffer, Direction, Losses, resolve
from ippo.influence.directions import leave_one_out, leaves_one_out
from ippo.influence.gathering import gathered
from ippo.influence.half import HalfPrecision
from ippo.influence.hook_check import checked_derivative
from ippo.influence.hooks import UncoveredLayerError
from ippo.influence.in_step import run_in_step
from ippo.influence.loop import loop_scores, loop_scores_and_norms
from ippo.influence.parameters import Subset, require_whole, scored, spread
from ippo.influence.precision import half_of, require_full_precision
from ippo.influence.scorer import Scorer

Backend = Literal["auto", "jvp", "ghost", "loop", "fd"]
Precision = Literal["float32", "bfloat16"]

_BACKENDS: dict[str, OneBatch] = {
    "jvp": jvp_scores,
    "ghost": ghost_scores,
    "loop": loop_scores,
    "fd": fd_scores,
}


class ExactScorer(Scorer):
    """score_i = <gradient of loss_i, direction>, exactly (arXiv 2604.01597, the influence score).

    A positive score says that a descent step on episode i also lowers the reference loss.

    Args:
        backend: ``"ghost"``, one forward and one backward with hooks on every layer; ``"jvp"``, one forward-mode pass,
            which keeps no graph; ``"loop"``, one backward an episode, the oracle of the tests; ``"fd"``, finite
            differences, a check to 1e-3, which also moves what a loss detaches; ``"auto"`` takes ghost, jvp where
            hooks cannot tell the episodes apart, and the loop where neither works. Leaving each episode out of a
            :class:`BufferDirection` takes the gradients' norms as well: whatever the backend, both then come from one
            pass with hooks, or from the loop.
        parameters: the parameters that count: all (None), the last k blocks (k), ``"lora"``, or a regular expression.
        precision: ``"float32"``, the parameters' own; or ``"bfloat16"``, in which hooks run with sums in float32, the
            direction staying as it is. One call in sixteen, the first among them, is then scored in both: it has the
            precise scores, and where more than 1 % of the signs differ all are float32 from there on, which is said.
            Leaving each episode out of a :class:`BufferDirection`, and a layer that hooks cannot cover, take float32.

    Attributes:
        choice: after scoring, the backend that was used and why, in one sentence.

    Example:
        >>> module = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(module.weight, 3.0)
        >>> squares = lambda module, x: (module(x) ** 2 / 2).flatten()  # gradient of a row: weight * x ** 2
        >>> ExactScorer().score(module, squares, [torch.tensor([[1.0], [2.0]])], {"weight": torch.tensor([[0.5]])})
        tensor([1.5000, 6.0000])
    """

    def __init__(self, backend: Backend = "auto", parameters: Subset = None, precision: Precision = "float32") -> None:
        choices = ("auto", *_BACKENDS)
        require(backend in choices, "backend", backend, f"use one of {', '.join(choices)}")
        require(precision in ("float32", "bfloat16"), "precision", precision, "use float32 or bfloat16")
        self._half = HalfPrecision() if precision == "bfloat16" else None
        remedy = "bfloat16 is for hooks, other backends lose too much in it: use backend='auto' or 'ghost'"
        require(self._half is None or backend in ("auto", "ghost"), "precision", precision, remedy)
        self.backend, self.parameters, self.precision = backend, parameters, precision
        self.gives_jvps = self.forward_mode = backend in ("auto", "jvp") and self._half is None
        self.choice = f"{backend}: it was asked for"
        self._picked = Choice()

    def check(self, module: nn.Module) -> None:
        if self.backend not in ("auto", "ghost"):
            require_whole(module, "backend", self.backend)
        if self._half is not None:
            require_whole(module, "precision", "bfloat16")
        if self.backend == "fd":
            require_full_precision(half_of(module), "backend", "fd")

    def score(
        self, module: nn.Module, losses: Losses, batches: Iterable[Any], direction: Direction | Mapping[str, Tensor]
    ) -> Tensor:
        """See :meth:`Scorer.score`."""
        with scored(module, self.parameters):
            self.check(module)
            fitted = resolve(direction, module, Buffer(losses, batches))
            along = gathered(fitted, keep=self.parameters is not None)
            if leaves_one_out(direction):
                both = run_in_step(module, batches, lambda batch: self._with_norms(module, losses, batch, along))
                nothing = torch.empty(0, device=next(module.parameters()).device)
                both = both or [(nothing, nothing)]  # another rank may hold all the episodes, and waits for this one
                return leave_one_out(*map(torch.cat, zip(*both, strict=True)))
            batches = batches if self._half is None else list(batches)
            score = partial(self._scores, module, losses, batches, along)
            scores = score() if self._half is None else self._in_half(module, score)
        return torch.cat([one.detach().float() for one in scores]) if scores else torch.empty(0)

    def token_scores(
        self,
        module: nn.Module,
        token_losses: Losses,
        batches: Iterable[Any],
        direction: Direction | Mapping[str, Tensor],
    ) -> Tensor:
        """What each token adds to its episode's score.

        Args:
            module, batches, direction: as in :meth:`score`.
            token_losses: ``token_losses(module, batch) -> [n, t]``, whose sum over t is the episode's loss.

        Returns:
            [n, t] float32, whose sum over t is the episode's score; t is the longest of all batches, padded with 0.
        """
        return self.derivatives(module, token_losses, batches, direction)[1]

    def derivatives(
        self,
        module: nn.Module,
        function: Losses,
        batches: Iterable[Any],
        direction: Direction | Mapping[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Scorer.derivatives`; in one forward-mode pass whatever the backend."""
        self.choice = "jvp: one pass gives the values a token and their jvps"
        values: list[Tensor] = []
        jvps: list[Tensor] = []
        require(not leaves_one_out(direction), "direction", "BufferDirection(leave_one_out=True)", "use score instead")
        with scored(module, self.parameters):
            require_whole(module, "scorer", "token scores and derivatives of log-probabilities")
            along = resolve(direction, module, Buffer(lambda *args: function(*args).sum(1), batches))
            for batch in batches:
                value, jvp = checked_derivative(module, function, batch, along)
                shape = f"a result of shape {tuple(value.shape)}"
                require(value.dim() == 2, "function", shape, "return one number a token, [n, t]")
                precision = torch.promote_types(value.dtype, torch.float32)  # never less than float32
                values += value.to(precision)
                jvps += (torch.zeros_like(value) if jvp is None else jvp).to(precision)
        if not values:
            return torch.empty(0, 0), torch.empty(0, 0)
        return pad_sequence(values, batch_first=True), pad_sequence(jvps, batch_first=True)

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Scorer.state_dict`."""
        return {} if self._half is None else {"calls": self._half.calls, "refused": self._half.refused}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Scorer.load_state_dict`."""
        if self._half is not None and state:
            self._half.calls, self._half.refused = state["calls"], state["refused"]

    def _in_half(self, module: nn.Module, score: Callable[[], list[Tensor]]) -> list[Tensor]:
        def by_hooks() -> bool:
            return self.backend == "ghost" or self._picked.backend == "ghost"

        assert self._half is not None
        scores = self._half.scores(next(module.parameters()).device.type, by_hooks, score)
        self.choice += f"; in {'float32' if self._half.refused else 'bfloat16'}"
        return scores

    def _scores(
        self, module: nn.Module, losses: Losses, batches: Iterable[Any], along: Mapping[str, Tensor]
    ) -> list[Tensor]:
        if self.backend != "auto":
            self.choice = f"{self.backend}: it was asked for"
            return run_in_step(module, batches, lambda batch: self._asked_for(module, losses, batch, along))
        scores = self._picked.scores(module, losses, batches, along)
        self.choice = f"{self._picked.backend}: {self._picked.why}"
        return scores

    def _asked_for(self, module: nn.Module, losses: Losses, batch: Any, along: Mapping[str, Tensor]) -> Tensor:
        try:
            return _BACKENDS[self.backend](module, losses, batch, along)
        except NotImplementedError as error:
            raise UsageError("backend", self.backend, f"{why_no_forward_mode(error)}: use backend='auto'") from error

    def _with_norms(
        self, module: nn.Module, losses: Losses, batch: Any, along: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Scores and squared norms. Norms take the gradients themselves, which give the scores as well: no backend is
        cheaper then."""
        self.choice = "ghost: the length of each gradient is asked for, and hooks give it with the score"
        try:
            return ghost_scores_and_norms(module, losses, batch, along)
        except UncoveredLayerError as refusal:
            if self.backend == "ghost" or spread(module):
                raise
            self.choice = f"loop: hooks cannot cover {refusal.layer!r}, because {refusal.reason}"
            return loop_scores_and_norms(module, losses, batch, along)


def token_scores_from_jvps(losses: Callable[[Tensor], Tensor], logprobs: Tensor, jvps: Tensor) -> Tensor:
    """Scores by the chain rule, from a pass that was made before the losses were known.

    Args:
        losses: [n, t] log-probabilities -> [n], depending on the parameters through them alone.
        logprobs: [n, t].
        jvps: [n, t] their derivative along the direction.

    Returns:
        [n, t] dloss_i / dlogprob_it * jvp_it, whose sum over t is the episode's score.

    Example:
        >>> squares = lambda logprobs: (logprobs**2).sum(1)
        >>> token_scores_from_jvps(squares, torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1.0]]))  # 2 * 3, 4 * 1
        tensor([[6., 4.]])
    """
    with torch.enable_grad():
        leaves = logprobs.detach().requires_grad_()
        (gradients,) = torch.autograd.grad(losses(leaves).sum(), leaves)
    return gradients * jvps
