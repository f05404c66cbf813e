"""The rollout buffer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import torch
from pyarrow import parquet
from torch import Tensor

from ippo.errors import UsageError
from ippo.files import whole
from ippo.rollout.sequences import Sequences, axis_field

_NUMBERS = ("score", "reward", "weight")  # and what begins like them: of further filters, and of several rewards
_OWN = ("prompt", "response", "reward", "finished", "weight", "kept", "reason")


@dataclass(frozen=True, eq=False)
class Episodes(Sequences):
    """``n`` finished episodes: what was sampled, what it earned, and what PPO makes of it.

    Immutable: ``select``, ``reweight`` and ``with_extras`` return a new buffer. Nothing is lost on the way: the rows
    that a ``select`` leaves out travel along as ``dropped``, with the reason, and take no part in training.

    Args:
        prompts, responses: the texts, without special tokens.
        rewards: [n] what was earned, before any KL penalty.
        groups: [n] integers, equal for the samples of one prompt.
        finished: [n] bool, whether the response ended by itself.
        old_logprobs, reference_logprobs: [n, t] log-probabilities under the policy that sampled, and before PPO.
        values: [n, t] the critic's values at that time.
        advantages, returns: [n, t], see :func:`ippo.ppo.advantages.with_advantages`.
        weights: [n] factor of each episode's policy loss; 1 until a filter says otherwise.
        importance: [n, t] factor of each token's policy loss, where the engine has kernels of its own; else None.
        logprob_jvps: [n, t] derivative of each old log-probability along a filter's direction, where one asked for it.
        extras: more columns, one entry an episode: the task's answers and checks, a filter's scores.
        dropped: what filters have left out so far.
    """

    prompts: list[str] = axis_field("episode")
    responses: list[str] = axis_field("episode")
    rewards: Tensor = axis_field("episode")
    groups: Tensor = axis_field("episode")
    finished: Tensor = axis_field("episode", kw_only=True)
    old_logprobs: Tensor = axis_field("token")
    reference_logprobs: Tensor = axis_field("token")
    values: Tensor = axis_field("token")
    advantages: Tensor = axis_field("token")
    returns: Tensor = axis_field("token")
    weights: Tensor = axis_field("episode")
    importance: Tensor | None = axis_field("token", default=None)
    logprob_jvps: Tensor | None = axis_field("token", default=None)
    extras: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    dropped: tuple[Episodes, ...] = ()

    def rows(self, index: Tensor) -> Episodes:
        """The rows that ``index`` ([m] integers or [n] bool) picks; what was dropped is left behind."""
        places = index.nonzero().flatten().tolist() if index.dtype == torch.bool else index.tolist()
        extras = {key: [values[place] for place in places] for key, values in self.extras.items()}
        return dataclasses.replace(super().rows(index), extras=extras, dropped=())

    def select(self, mask: Tensor, reasons: str | Sequence[str] = "") -> Episodes:
        """Keep the rows where ``mask`` ([n] bool) is True; the others move to ``dropped``, each with its reason.

        Raises:
            ValueError: if ``mask`` is not one bool an episode.
        """
        if mask.shape != (len(self),) or mask.dtype != torch.bool:
            raise ValueError(f"mask must be {len(self)} bools, one an episode, but is {mask.dtype} {tuple(mask.shape)}")
        if mask.all():
            return self
        why = [reasons] * len(self) if isinstance(reasons, str) else reasons
        out = self.with_extras(reason=why).rows(~mask)
        return dataclasses.replace(self.rows(mask), dropped=(*self.dropped, out))

    def reweight(self, weights: Tensor) -> Episodes:
        """The same episodes with other loss weights ([n], finite, not negative).

        Raises:
            ValueError: if ``weights`` is not one such number an episode.
        """
        if weights.shape != (len(self),) or not bool((torch.isfinite(weights) & (weights >= 0)).all()):
            raise ValueError(f"weights must be {len(self)} finite numbers >= 0, but are {weights}")
        return dataclasses.replace(self, weights=weights.to(self.weights))

    def with_extras(self, **extras: Sequence[Any]) -> Episodes:
        """The same episodes with further columns, each with one plain value an episode."""
        for key, values in extras.items():
            if len(values) != len(self) or key in _OWN[:6]:
                raise ValueError(
                    f"note {key!r} needs a free name and {len(self)} values, one an episode, but has {len(values)}"
                )
        return dataclasses.replace(self, extras={**self.extras, **extras})

    def weightless(self) -> Episodes:
        """One episode that passes through the models and changes nothing, whatever was wrong with its numbers.

        Raises:
            UsageError: if there is none, nor a dropped one, to make it of.
        """
        for part in (self, *self.dropped):
            if len(part):
                one = part.rows(torch.tensor([0])).trim()
                names = ("old_logprobs", "reference_logprobs", "values", "advantages", "returns", "weights")
                zeros: dict[str, Any] = {name: torch.zeros_like(getattr(one, name)) for name in names}
                return dataclasses.replace(one, importance=None, **zeros)
        remedy = "leave episodes out with Episodes.select, which keeps them"
        raise UsageError("on_rollout_end", "no episode, nor a dropped one", remedy)

    def minibatches(self, size: int, generator: torch.Generator | None = None) -> list[Episodes]:
        """The episodes in random order, in ceil(n / size) parts whose sizes differ by at most one."""
        order = torch.randperm(len(self), generator=generator)
        parts = -(-len(self) // size)
        return [self.rows(index).trim() for index in order.tensor_split(parts)] if parts else []

    def records(self) -> dict[str, list[Any]]:
        """One plain column a name, the survivors first and then what was dropped."""
        parts = (self, *self.dropped)
        names = dict.fromkeys(key for part in parts for key in part.extras if key != "reason")
        table: dict[str, list[Any]] = {
            "prompt": [text for part in parts for text in part.prompts],
            "response": [text for part in parts for text in part.responses],
            "reward": [value for part in parts for value in part.rewards.tolist()],
            "finished": [value for part in parts for value in part.finished.tolist()],
        }
        for name in names:
            table[name] = [value for part in parts for value in part.extras.get(name, [None] * len(part))]
        table["weight"] = [*self.weights.tolist(), *(0.0 for part in self.dropped for _ in part.prompts)]
        table["kept"] = [part is self for part in parts for _ in part.prompts]
        table["reason"] = [reason for part in parts for reason in part.extras.get("reason", [""] * len(part))]
        return table


def write_parquet(table: Mapping[str, Sequence[Any]], path: Path | str) -> None:
    """Write columns to a parquet file that appears whole or not at all."""
    content = pyarrow.table(dict(table))
    for place, field in enumerate(content.schema):
        if pyarrow.types.is_null(field.type):  # a column without any value must still have the type it has elsewhere
            kind = pyarrow.float64() if field.name.startswith(_NUMBERS) else pyarrow.string()
            kind = pyarrow.bool_() if field.name == "faithful" else kind
            content = content.set_column(place, field.name, content.column(place).cast(kind))
    with whole(path) as unfinished:
        parquet.write_table(content, unfinished)
