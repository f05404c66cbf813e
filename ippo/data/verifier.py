"""A training verifier that errs on purpose, for any task that is answered by a number after ``####``.

The embedded task has dials of its own for the same: random errors, errors that fall on a prompt's samples together, and
wrong answers of one kind that always pay. Curves, tests and figures keep to the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ippo.data.task import Task
from ippo.errors import require
from ippo.rewards import ErrsOn, HoledVerifier, HoleName, NoisyVerifier, RewardFunction, final_answer, passes


@dataclass(frozen=True)
class VerifierOptions:
    """How the training verifier errs. By default it does not; the embedded task has dials of its own.

    Args:
        error: share of the rewards that are flipped.
        errs_on: ``"both"`` right and wrong answers, or one of them alone.
        error_icc: correlation of the flips on the samples of one prompt.
        hole: kind of wrong answers that it lets by (:mod:`ippo.rewards.holes`).
        hole_rate: share of them that it does.
    """

    error: float = 0.0
    errs_on: ErrsOn = "both"
    error_icc: float = 0.0
    hole: HoleName = "none"
    hole_rate: float = 1.0

    def __post_init__(self) -> None:
        for name in ("error", "error_icc", "hole_rate"):
            share = getattr(self, name)
            require(0.0 <= share <= 1.0, f"verifier.{name}", share, "use a share between 0 and 1")

    @property
    def errs(self) -> bool:
        """Whether it ever does."""
        return self.error > 0.0 or self.hole != "none"

    @property
    def notice(self) -> str:
        """What a user must know of it.

        Example:
            >>> VerifierOptions(hole="short").notice
            "The training verifier lets 100% of 'short' answers by, on purpose; evaluation never does."
        """
        sides = {"both": "its rewards", "right": "the right answers", "wrong": "the wrong answers"}
        together = f", in groups (ICC {self.error_icc:g})" if self.error_icc else ""
        parts = [f"lets {self.hole_rate:.0%} of {self.hole!r} answers by"] if self.hole != "none" else []
        parts += [f"errs on {self.error:.0%} of {sides[self.errs_on]}{together}"] if self.error or not parts else []
        return f"The training verifier {', and '.join(parts)}, on purpose; evaluation never does."

    def around(self, reward: RewardFunction) -> RewardFunction:
        """The exact ``reward`` with these errors, the random ones last.

        Raises:
            UsageError: if there is no such hole or side.
        """
        if self.hole != "none":
            reward = HoledVerifier(reward, self.hole, self.hole_rate)
        return NoisyVerifier(reward, self.error, self.errs_on, self.error_icc)


def with_verifier(task: Task, options: VerifierOptions) -> Task:
    """``task``, rewarded by a verifier that errs; wrong answers of the hole's kind are then ``"hacked"``.

    Raises:
        UsageError: if the task has several rewards, or it has a hole and a gold solution without a number to read.
    """
    together = options.error_icc == 0.0 or options.error > 0.0
    remedy = "there are no errors to correlate: say --verifier.error"
    require(together, "verifier.error_icc", options.error_icc, remedy)
    if not options.errs:
        return task
    reward: Any = task.reward
    rewards = list(reward) if isinstance(reward, (list, tuple)) else [reward]
    remedy = "an error flips one reward of 0 and 1, and this task has several: leave it out"
    require(len(rewards) == 1, "verifier", f"{len(rewards)} rewards", remedy)
    said = f"{task.notice} {options.notice}".strip()
    task = replace(task, reward=options.around(rewards[0]), notice=said)
    if options.hole == "none":
        return task
    unread = next((row["solution"] for row in task.gold if final_answer(row["solution"]) is None), None)
    remedy = f"a hole reads a number after ####, which this gold solution of {task.name} has not: {unread!r}"
    require(unread is None, "verifier.hole", options.hole, remedy)
    return replace(task, check=HackedCheck(task.check, options.hole))


class HackedCheck:
    """A task's check that tells wrong answers of a hole's kind from other wrong ones.

    Args:
        check: the truth.
        hole: wrong answers that go through it are ``"hacked"``, whether they passed or not.
    """

    def __init__(self, check: Callable[..., Any], hole: HoleName) -> None:
        self.check, self.hole = check, hole

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]
    ) -> dict[str, Sequence[Any]]:
        found = dict(self.check(prompts=prompts, completions=completions, **columns))
        gone = [passes(self.hole, *texts) for texts in zip(prompts, completions, strict=True)]
        pairs = zip(found["chain"], gone, strict=True)
        found["chain"] = ["hacked" if chain == "wrong" and through else chain for chain, through in pairs]
        return found
