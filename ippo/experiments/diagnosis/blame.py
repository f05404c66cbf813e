"""Do a score's tokens point at the step that is wrong?"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import accumulate
from typing import Any

from ippo.rewards.steps import mark_lines

KINDS = ("wrong_step", "nonsense")
"""Classes of chains in which a line is there that should not be; of a shortcut no token is to blame."""

BLAME = 0.2
"""Of the lowest score in the chain: a line is blamed whose lowest token has this much of it. One token of a wrong step
may be all that is wrong with it, and what goes on from a wrong number is unlikely, too: so no means, and the first."""


@dataclass(frozen=True)
class Blame:
    """Sums over episodes.

    Args:
        episodes: how many.
        tokens: of their chains of thought, the answer left out.
        guilty: tokens of lines that are no true step.
        hits: guilty tokens among the lowest-scored, of each episode as many as are guilty.
        chance_hits: what a random order would have hit.
        found_lines: episodes whose first blamed line is the step that is wrong: the first guilty one, as those after it
            may only go on from its number.
        chance_lines: what a line drawn at random would have hit.
    """

    episodes: int = 0
    tokens: int = 0
    guilty: int = 0
    hits: int = 0
    chance_hits: float = 0.0
    found_lines: int = 0
    chance_lines: float = 0.0

    def __add__(self, other: Blame) -> Blame:
        return Blame(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    @property
    def token_lift(self) -> float:
        """How many times as often as chance a lowest-scored token is guilty."""
        return self.hits / self.chance_hits if self.chance_hits else float("nan")

    @property
    def line_lift(self) -> float:
        """How many times as often as chance the first blamed line is the step that is wrong."""
        return self.found_lines / self.chance_lines if self.chance_lines else float("nan")


def of_episode(tokens: Sequence[str], scores: Sequence[float], response: str, steps: Sequence[str]) -> Blame | None:
    """One episode's; None if its tokens do not spell the response, or not a line or every line is guilty.

    Args:
        tokens, scores: of the response, the end-of-sequence token perhaps last.
        response: its text.
        steps: the problem's true steps.

    Example:
        >>> tokens = ["3", "+1", "=5", "\\n", "4", "*2", "=8", "\\n", "#### 8"]
        >>> scores = [0.1, 0.0, -0.5, 0.0, 0.0, 0.0, 0.2, 0.0, 0.0]
        >>> found = of_episode(tokens, scores, "".join(tokens), ["3+1=4", "4*2=8"])
        >>> found.guilty, found.hits, found.found_lines, found.chance_lines
        (4, 3, 1, 0.5)
    """
    starts = list(accumulate(map(len, tokens), initial=0))[:-1]
    if not "".join(tokens).startswith(response):
        return None
    marked = mark_lines(response, steps)
    ends = list(accumulate(len(line) for line, _ in marked))
    places: list[list[int]] = [[] for _ in marked]
    for token, start in enumerate(starts):
        if ends and start < ends[-1]:
            places[bisect_right(ends, start)].append(token)
    lines = [(of_line, mark) for of_line, (_, mark) in zip(places, marked, strict=True) if of_line and mark is not None]
    guilty = {token for of_line, mark in lines if not mark for token in of_line}
    chain = [token for of_line, _ in lines for token in of_line]
    if not guilty or len(guilty) == len(chain):
        return None
    order = sorted(chain, key=scores.__getitem__)
    lowest = scores[order[0]]
    enough = BLAME * lowest if lowest < 0 else lowest
    blamed = next(line for line in lines if min(scores[token] for token in line[0]) <= enough)
    first = next(line for line in lines if not line[1])
    return Blame(
        episodes=1,
        tokens=len(chain),
        guilty=len(guilty),
        hits=len(guilty.intersection(order[: len(guilty)])),
        chance_hits=len(guilty) ** 2 / len(chain),
        found_lines=int(blamed is first),
        chance_lines=1 / len(lines),
    )


def of_run(episodes: Mapping[str, Any], steps: Mapping[str, Sequence[str]], kind: str) -> Blame:
    """Sum over the rewarded right answers of a kind: what PPO would strengthen, the wrong line with it.

    Args:
        episodes: columns of a run, with tokens and their scores.
        steps: the true steps of each problem, by its prompt.
        kind: of the chains.
    """
    total = Blame()
    for place in ((episodes["chain"] == kind) & episodes["rewarded"]).nonzero()[0].tolist():
        prompt, response = episodes["prompt"][place], episodes["response"][place]
        tokens, scores = episodes["tokens"][place], episodes["token_scores"][place]
        found = of_episode(tokens, scores, response, steps[prompt]) if prompt in steps else None
        total = total + found if found is not None else total
    return total
