"""Episodes whose text is coloured by its score."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ippo.recipes.run_report.classes import NAMES


@dataclass(frozen=True)
class Piece:
    """A part of a response: its ``text``, the ``score`` of it, and how strong its colour is, from -1 to 1."""

    text: str
    score: float
    colour: float


@dataclass(frozen=True)
class Shown:
    """An episode to look at."""

    prompt: str
    pieces: list[Piece]
    score: float
    facts: str
    kept: bool


def shown(episode: Mapping[str, Any], largest: float) -> Shown:
    """An episode with its tokens coloured by their own scores, where there are any, else by the episode's.

    Colours grow with the square root of a score, as a few tokens have most of it: of tokens within the episode, of
    episodes against the ``largest`` score of the iteration, by size.

    Example:
        >>> found = shown({"prompt": "2?", "response": "1 2", "score": -1.0, "kept": False, "reward": 1.0,
        ...     "reason": "score <= 0", "chain": "wrong", "tokens": ["1", " 2"], "token_scores": [1.0, -4.0]}, 4.0)
        >>> [(piece.text, piece.colour) for piece in found.pieces], found.facts
        ([('1', 0.5), (' 2', -1.0)], 'dropped: score <= 0 · reward 1 · wrong')
    """
    scores = [0.0 if one is None or not math.isfinite(one) else one for one in episode.get("token_scores") or []]
    if scores:
        most = max(map(abs, scores)) or 1.0
        pairs = zip(episode["tokens"], scores, strict=True)
        pieces = [Piece(text, score, _colour(score, most)) for text, score in pairs]
    else:
        pieces = [Piece(episode["response"], episode["score"], _colour(episode["score"], largest or 1.0))]
    fate = "kept" if episode["kept"] else f"dropped: {episode.get('reason') or 'by the filter'}"
    kind = [NAMES.get(episode["chain"], episode["chain"])] if episode.get("chain") else []
    unfinished = [] if episode.get("finished", True) else ["unfinished"]
    facts = " · ".join([fate, f"reward {episode['reward']:.3g}", *kind, *unfinished])
    return Shown(episode["prompt"], pieces, episode["score"], facts, episode["kept"])


def _colour(score: float, most: float) -> float:
    return round(math.copysign(math.sqrt(min(1.0, abs(score) / most)), score), 2)
