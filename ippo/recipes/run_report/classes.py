"""What the filter did to right, wrong, gamed and unfaithful episodes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NAMES = {
    "faithful": "right, by faithful reasoning",
    "wrong_step": "right, with a wrong step",
    "nonsense": "right, with a step that has no place",
    "shortcut": "right, with a step left out",
    "unverifiable": "right, reasoning not checkable",
    "wrong": "wrong",
    "hacked": "wrong, through the verifier's hole",
}


@dataclass(frozen=True)
class Kept:
    """Of a class of episodes: how many there were, and what share stayed, None of none."""

    count: int
    share: float | None


def kept_by_class(episodes: Mapping[str, Sequence[Any]]) -> dict[str, tuple[Kept, Kept]]:
    """Of each class that there is: the rewarded ones, and the others.

    Args:
        episodes: ``chain``, ``reward`` and ``kept``.

    Example:
        >>> columns = {"chain": ["wrong", "wrong", "hacked"], "reward": [0.0, 0.0, 1.0], "kept": [True, False, False]}
        >>> kept_by_class(columns)["wrong"]
        (Kept(count=0, share=None), Kept(count=2, share=0.5))
    """
    if not {"chain", "reward", "kept"} <= episodes.keys():
        return {}
    level = rewarded_above(episodes["reward"])
    members: dict[tuple[str, bool], list[bool]] = defaultdict(list)
    for chain, reward, kept in zip(episodes["chain"], episodes["reward"], episodes["kept"], strict=True):
        members[chain, reward > level].append(kept)
    return {
        name: (_kept(members[chain, True]), _kept(members[chain, False]))
        for chain, name in NAMES.items()
        if members[chain, True] or members[chain, False]
    }


def rewarded_above(rewards: Sequence[float]) -> float:
    """Above which reward an episode is called rewarded: a half where rewards are 0 and 1, else their mean.

    Example:
        >>> rewarded_above([1.0, 0.0, 0.0]), rewarded_above([2.0, 0.0, float("nan")])
        (0.5, 1.0)
    """
    known = [reward for reward in rewards if reward == reward]
    return 0.5 if set(known) <= {0.0, 1.0} else sum(known) / len(known)


def _kept(stays: Sequence[bool]) -> Kept:
    return Kept(len(stays), sum(stays) / len(stays) if stays else None)
