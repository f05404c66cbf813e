"""One verdict an answer: what was read, whether it is right, whether it was finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ippo.errors import require
from ippo.rewards.functions import Earned
from ippo.rewards.steps import CHAIN_CLASSES, ChainClass

Check = Callable[..., Mapping[str, Sequence[Any]]]
"""``check(prompts, completions, **columns)``: the truth about each completion, never shown to the training.

Returns ``"answer"`` (the extracted answer, or None), ``"correct"`` (bool) and ``"chain"`` (a
:data:`ippo.rewards.ChainClass`), one entry a completion; further columns go into the episode files."""

_NEEDED = ("answer", "correct", "chain")


@dataclass(frozen=True)
class Verdicts:
    """What is held of ``n`` responses, decided once: every figure and every file reads this.

    An unfinished response is wrong whatever it says: the 12 at its end may be the beginning of 1250.

    Args:
        answers: what was read from each, finished or not; None where nothing was.
        right: whether that equals the gold answer.
        finished: whether the response ended by itself.
        chains: the class of each chain of thought, ``"wrong"`` where the response is unfinished.
        others: further columns of the task's check.
    """

    answers: list[str | None]
    right: list[bool]
    finished: list[bool]
    chains: list[ChainClass]
    others: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def correct(self) -> list[bool]:
        """Whether each answer is right and its response finished."""
        return [right and finished for right, finished in zip(self.right, self.finished, strict=True)]

    @property
    def votes(self) -> list[str | None]:
        """The answers that vote. What the policy did not finish it has not said: a number cut short would outvote
        those that were given whole."""
        return [answer if done else None for answer, done in zip(self.answers, self.finished, strict=True)]

    @property
    def extras(self) -> dict[str, Sequence[Any]]:
        """As columns of episodes."""
        return {"answer": self.answers, "correct": self.correct, "chain": self.chains, **self.others}

    def as_earned(self) -> Earned:
        """1 for each right answer, in the place of what a reward would give."""
        truth: list[float | None] = [float(right) for right in self.right]
        return Earned(truth, {"check": truth})


class Judge:
    """Makes the verdicts, by a task's check.

    Args:
        check: see :data:`Check`.

    Example:
        >>> from ippo.rewards import NUMBERS
        >>> found = Judge(NUMBERS.check)([True, False], ["p"] * 2, ["#### 12"] * 2, answer=["12"] * 2)
        >>> found.answers, found.correct, found.chains
        (['12', '12'], [True, False], ['unverifiable', 'wrong'])
    """

    def __init__(self, check: Check) -> None:
        self.check = check

    def __call__(
        self, finished: Sequence[bool], /, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]
    ) -> Verdicts:
        """Judge each completion, which ``finished`` says to be whole or not.

        Raises:
            UsageError: if the check does not say what it should of each.
        """
        truth = self.check(prompts=prompts, completions=completions, **columns)
        missing = [name for name in _NEEDED if name not in truth]
        require(not missing, "check", f"no {' and no '.join(missing)}", f"return columns {', '.join(_NEEDED)}")
        for name, values in truth.items():
            remedy = f"return one entry for each of {len(completions)} completions"
            require(len(values) == len(completions), "check", f"{len(values)} entries of {name}", remedy)
        unknown = [chain for chain in truth["chain"] if chain not in CHAIN_CLASSES]
        require(not unknown, "check", f"chain {unknown[:1]}", f"each chain is one of {', '.join(CHAIN_CLASSES)}")
        return Verdicts(
            answers=list(truth["answer"]),
            right=[bool(right) for right in truth["correct"]],
            finished=list(finished),
            chains=[chain if done else "wrong" for chain, done in zip(truth["chain"], finished, strict=True)],
            others={name: values for name, values in truth.items() if name not in _NEEDED},
        )
