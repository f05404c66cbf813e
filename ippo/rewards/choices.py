"""Multiple choice: the letter after ``####``."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from ippo.rewards.answers import split_answer

_LONGEST = 256  # characters of a line that may name an option
_WRAPPINGS = (
    re.compile(r"(\*\*|\*|__|_|`|\$)(.+)\1\.?"),
    re.compile(r"(\\(?:boxed|fbox|text|textbf|mathrm|mathbf))\s*\{(.+)\}\.?"),
)
_LABEL = re.compile(
    r"(?:(?:the\s+)?(?:(?:final|correct|right|best)\s+)?(?:answer|option|choice)(?:\s+is)?\b)?\s*[:=]?\s*", re.I
)
_DENIAL = re.compile(r"\b(?:not|no|never|neither|nor|wrong|incorrect|false|except|or)\b|n['’]t\b", re.I)
_OTHER_LETTER = re.compile(r"\b[A-Z]\b|(?<=[(\[])[a-z](?=[)\]])|\b[a-z](?=\))")
_LETTER = re.compile(
    r"""
    [*_`]{0,2}
    (?: (?P<open>[(\[]) \s* (?P<inside>[A-Za-z]) \s* [)\]]
      | (?P<alone>[A-Za-z]) (?P<closed>[)\].:])? )
    [*_`]{0,2} [.:,]? (?P<rest>\s.*|)
    """,
    re.VERBOSE,
)


def chosen(response: str, options: Sequence[str] | None = None) -> str | None:
    """The letter on the line of the last ``####``, or None where there is none, or more than one.

    It stands alone (``C``, ``(c)``, ``**C**``, ``Option C.``), or with its option's own text behind it. Behind a letter
    in brackets or with a stop, other words may follow that name no other option.

    Args:
        response: what the model wrote.
        options: the texts of the options, A first; None if they are not known: then any letter counts, and no text may
            stand behind one without a bracket or a stop.

    Example:
        >>> chosen("A bed is soft.\\n#### C"), chosen("#### **Option c**"), chosen("#### A or B"), chosen("C")
        ('C', 'C', None, None)
        >>> options = ["sky", "bed", "sea"]
        >>> [chosen(f"#### {line}", options) for line in ("(B) a bed", "B bed", "A bed", "I", "(A) or (B)")]
        ['B', 'B', None, None, None]
    """
    found = split_answer(response)
    line = _bare(found[1]) if found and len(found[1]) <= _LONGEST else ""
    match = _LETTER.fullmatch(line)
    if match is None:
        return None
    letter = (match["inside"] or match["alone"]).upper()
    letters = string.ascii_uppercase[: len(options) if options is not None else None]
    if letter not in letters:
        return None
    rest = _words(match["rest"])
    if not rest or (options is not None and rest == _words(options[letters.index(letter)])):
        return letter
    delimited = match["open"] or match["closed"]
    return letter if delimited and not _says_otherwise(match["rest"], letter, options or ()) else None


def _says_otherwise(text: str, letter: str, options: Sequence[str]) -> bool:
    """Whether the words behind a letter deny it or name another option."""
    letters = {found.upper() for found in _OTHER_LETTER.findall(text)} - {letter}
    others = [_words(option) for option, sign in zip(options, string.ascii_uppercase, strict=False) if sign != letter]
    return bool(
        _DENIAL.search(text) or letters or any(f" {other} " in f" {_words(text)} " for other in others if other)
    )


def _words(text: str) -> str:
    """Its words in small letters, an article before them left out."""
    words = re.findall(r"\w+", text.lower())
    return " ".join(words[1:] if words[:1] in (["a"], ["an"], ["the"]) and len(words) > 1 else words)


def _bare(line: str) -> str:
    """``line`` without the wrappings and labels that say nothing of the letter."""
    for _ in range(4):
        wrapped = next((match for pattern in _WRAPPINGS if (match := pattern.fullmatch(line))), None)
        label = _LABEL.match(line)
        line = wrapped[2].strip() if wrapped else line[label.end() :] if label else line
    return line
