r"""How LaTeX answers are written: one spelling for what looks the same, and the parts that an answer has.

Texts only; what they mean is for :mod:`ippo.rewards.latex`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from ippo.rewards.numbers import MONEY, spelled_one_way

_IN_LATEX = {
    "π": r"\pi ",
    "×": r"\times ",
    "·": r"\cdot ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "∞": r"\infty ",
    "∪": r"\cup ",
    "∈": r"\in ",
    "°": r"^\circ ",
}
_SPELLINGS = (
    (re.compile("[" + "".join(_IN_LATEX) + "]"), lambda found: _IN_LATEX[found[0]]),
    (re.compile(r"√\s*([0-9]+)"), r"\\sqrt{\1}"),
    (re.compile(r"<="), r"\\le "),
    (re.compile(r">="), r"\\ge "),
    (re.compile(r"!=|\\not\s*="), r"\\ne "),
    (re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])\s*"), ""),
    (re.compile(r"\\(?:displaystyle|textstyle)(?![A-Za-z])|\\!"), ""),
    (re.compile(r"\\q?quad(?![A-Za-z])"), " "),
    (re.compile(r"\\(?:math|text|operator)(?:rm|bf|it|sf|normal|name)\s*(?=\{)|\\[mh]box\s*(?=\{)"), r"\\text"),
    (re.compile(r"\\text\s+\{"), r"\\text{"),
    (re.compile(r"\^\s*\\circ(?![A-Za-z])|\^\s*\{\s*\\circ\s*\}|\\degree(?![A-Za-z])"), r"^\\circ"),
    (re.compile(r"\\percent(?![A-Za-z])|\\text\{\s*(?:%|\\%|per ?cent)\s*\}|\sper ?cent$"), r"\\%"),
    (re.compile(r"\\varnothing"), r"\\emptyset"),
    (re.compile(r"(?<=[0-9])\s*:\s*(?=[0-9])"), ":"),
    (re.compile(r"\\lbrace(?![A-Za-z])\s*"), r"\\{"),
    (re.compile(r"\\rbrace(?![A-Za-z])\s*"), r"\\}"),
)
_AROUND = (
    re.compile(r"\$\$?((?:[^$\\]|\\.)*)\$\$?", re.DOTALL),
    re.compile(r"\\\((.*)\\\)", re.DOTALL),
    re.compile(r"\\\[(.*)\\\]", re.DOTALL),
    re.compile(r"\*\*([^*]*)\*\*"),
    re.compile(r"\\boxed\{(.*)\}", re.DOTALL),
)
_DOLLAR = re.compile(r"(?<!\\)\$")  # two of them part words from mathematics, as in x=2$ or $x=3
_STOP = re.compile(r"(?<=[^.\\\s])\s*[.,;]\Z")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_WORDS = re.compile(r"(?=.*[A-Za-z]{4})[A-Za-z][A-Za-z ,.'’()-]*")
_TOKEN = re.compile(r"\\(?:[A-Za-z]+|.)|.", re.DOTALL)
_OPENING = frozenset({"(", "[", "{", r"\{", r"\langle", r"\begin", r"\lfloor", r"\lceil"})
_CLOSING = frozenset({")", "]", "}", r"\}", r"\rangle", r"\end", r"\rfloor", r"\rceil"})
_BETWEEN = re.compile(r",?\s*\\text\{\s*(?:and|or)\s*\}|,?\s+(?:and|or)\s+")
_THOUSANDS_IN_A_LIST = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
# Where no \text{} says that it is a word. Short ones stand apart: 2g and 4km are products, in physics above all.
_SHORT_UNIT = r"(?:cm|mm|km|kg|ft|yd|lb|oz|sec|min|hr|mph|kph|sq)"
_LONG_UNIT = (
    r"(?:square|cubic|inch(?:es)?|feet|foot|(?:yard|mile|second|minute|hour|day|week|month|year|degree|dollar|cent|unit|"
    r"(?:centi|milli|kilo)?(?:meter|metre|gram)|lit(?:er|re))s?)"
)
_UNIT = re.compile(
    rf"""
    (?P<math>.*[^\s,;(\[{{=])\s*
    (?:\\text\{{(?P<text>[A-Za-z .,/()-]*[A-Za-z][A-Za-z .,/()-]*)\}}
      |(?P<words>(?:(?<=\s){_SHORT_UNIT}|(?<=[\s0-9}})]){_LONG_UNIT})(?:\s+(?:{_SHORT_UNIT}|{_LONG_UNIT}))*))
    (?P<power>\s*\^\s*(?:\{{\s*-?[1-4]\s*\}}|-?[1-4]))?
    """,
    re.VERBOSE | re.DOTALL,
)
_SIGN_UNIT = re.compile(rf"(?P<math>.*[^\s\\])\s*(?P<sign>\\?%|\^\\circ|{MONEY})", re.DOTALL)
_OF_AN_ANGLE = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_MONEY_FIRST = re.compile(rf"(?P<minus>-?)(?P<sign>{MONEY})\s*(?P<math>.+)", re.DOTALL)
_NO_UNIT = re.compile(r"\b(?:and|or|to|mod|million|thousand|hundred|billion|dozens?|halves|half|thirds?|base|if)\b")
_ONE_UNIT = {
    "meter": "m",
    "metre": "m",
    "inch": "in",
    "inche": "in",
    "foot": "ft",
    "feet": "ft",
    "yard": "yd",
    "mile": "mi",
    "second": "s",
    "sec": "s",
    "minute": "min",
    "hour": "h",
    "hr": "h",
    "gram": "g",
    "liter": "l",
    "litre": "l",
    "dollar": "$",
    "usd": "$",
    "degree": "°",
    "square": "sq",
}
_PREFIXES = {"centi": "c", "milli": "m", "kilo": "k"}


class Bracketed(NamedTuple):
    """The parts between two brackets."""

    opening: str
    parts: list[str]
    closing: str


def tidy(text: str) -> str:
    r"""``text`` in one spelling: no dollar signs around it, no full stop behind it, ``\dfrac`` as ``\frac``.

    Example:
        >>> tidy(r"$\left( \dfrac12 ,\, 111,\!111 \right).$"), tidy(r"\textbf{(A)}")
        ('( \\frac{1}{2} ,  111,111 )', '\\text{(A)}')
    """
    for pattern, sign in _SPELLINGS:
        text = pattern.sub(sign, spelled_one_way(text))
    for _ in range(4):
        text = _STOP.sub("", text.strip())
        text = next((found[1] for around in _AROUND if (found := around.fullmatch(text))), text)
    return (_DOLLAR.sub(" ", text) if len(_DOLLAR.findall(text)) > 1 else text).strip()


def is_text(text: str) -> bool:
    r"""Whether a tidy answer is words and no mathematics: all in ``\text{}``, or a word of four letters in it.

    Example:
        >>> is_text(r"\text{June 20}"), is_text("no solution"), is_text(r"5 \text{ cm}"), is_text("abc")
        (True, True, False, False)
    """
    rest = _TEXT.sub("", text)
    return (rest != text and not re.search(r"[A-Za-z0-9\\]", rest)) or _WORDS.fullmatch(text) is not None


def plain_text(text: str) -> str:
    r"""The words of an answer, in small letters; ``(B)`` is ``b``.

    Example:
        >>> plain_text(r"\text{C, E}"), plain_text(r"\text{(B)}"), plain_text("June  20")
        ('c,e', 'b', 'june 20')
    """
    words = re.sub(r"\s+", " ", _TEXT.sub(r" \1 ", text)).strip().strip(".").strip().lower()
    words = re.sub(r"\s*([,;:])\s*", r"\1", words)
    return re.sub(r"\(\s*([a-z])\s*\)", r"\1", words)


def without_text(text: str) -> str:
    r"""What stands in ``\text{}``, where that is all."""
    found = _TEXT.fullmatch(text)
    return found[1].strip() if found else text


def split_unit(text: str) -> tuple[str, str]:
    r"""A tidy answer without its unit, and the unit in one spelling, empty where there is none.

    Example:
        >>> split_unit(r"8\sqrt{3} \text{ square inches}"), split_unit(r"7.2\%"), split_unit("5 cm^2"), split_unit("2t")
        (('8\\sqrt{3}', 'in^2'), ('7.2', '%'), ('5', 'cm^2'), ('2t', ''))
    """
    found = _UNIT.fullmatch(text)
    if found and re.search("[0-9]", found["math"]) and not _NO_UNIT.search(found["text"] or ""):
        unit = _one_unit(found["text"] or found["words"], re.sub(r"[^0-9-]", "", found["power"] or ""))
        math, sign = split_unit(found["math"].strip())  # 20^\circ\text{C}
        return math, sign + unit
    if (found := _SIGN_UNIT.fullmatch(text)) and not _OF_AN_ANGLE.search(found["math"]):
        return found["math"].strip(), "%" if "%" in found["sign"] else "°" if "circ" in found["sign"] else "$"
    if found := _MONEY_FIRST.fullmatch(text):
        math, unit = split_unit(found["minus"] + found["math"].strip())
        return math, unit or "$"
    return text, ""


def _one_unit(words: str, power: str) -> str:
    known = [word.removesuffix("s") if len(word) > 2 else word for word in re.findall("[a-z]+", words.lower())]
    known = [re.sub("^(centi|milli|kilo)(?=met|gram)", r"\1 ", word).split() for word in known]
    known = ["".join(_PREFIXES.get(part) or _ONE_UNIT.get(part, part) for part in word) for word in known]
    if known[:1] in (["sq"], ["cubic"]) and len(known) > 1:
        known, power = known[1:], "2" if known[0] == "sq" else "3"
    return " ".join(known) + (f"^{power}" if power else "")


def split(text: str, *separators: str) -> list[str]:
    r"""The parts of ``text`` between separators that stand in no brackets; the whole where brackets do not match.

    Example:
        >>> split(r"(1,2), \{3,4\}", ","), split(r"[0,1) \cup (2,3]", r"\cup"), split("1)2,3", ",")
        (['(1,2)', '\\{3,4\\}'], ['[0,1)', '(2,3]'], ['1)2,3'])
    """
    parts, depth = [""], 0
    for token in _tokens(text):
        depth += (token in _OPENING) - (token in _CLOSING)
        if depth < 0:
            return [text]
        if depth == 0 and token in separators:
            parts.append("")
        else:
            parts[-1] += token
    return [part.strip() for part in parts] if depth == 0 else [text]


def listed(text: str) -> list[str]:
    r"""The answers that a text lists by commas, semicolons, "and" and "or"; two for ``\pm``.

    Example:
        >>> listed(r"1, 2 \text{ and } 3"), listed(r"2 \pm \sqrt{3}"), listed("1,000, 2,000")
        (['1', '2', '3'], ['2 + \\sqrt{3}', '2 - \\sqrt{3}'], ['1000', '2000'])
    """
    text = _BETWEEN.sub(", ", text)
    if re.search(r",\s", text):
        text = _THOUSANDS_IN_A_LIST.sub("", text)
    each = [(part.replace(r"\pm", "+"), part.replace(r"\pm", "-")) for part in split(text, ",", ";")]
    return [one.removeprefix("+").strip() for pair in each for one in dict.fromkeys(pair)]


def bracketed(text: str) -> Bracketed | None:
    r"""The parts of an answer that stands in brackets as a whole: a point, an interval, a set.

    Example:
        >>> bracketed("[0, 1)"), bracketed("(1)+(2)"), bracketed("(x+1)")
        (Bracketed(opening='[', parts=['0', '1'], closing=')'), None, None)
    """
    tokens = list(_tokens(text))
    if len(tokens) < 3 or tokens[0] not in _OPENING - {"{", r"\begin"} or tokens[-1] not in _CLOSING - {"}", r"\end"}:
        return None
    inner = "".join(tokens[1:-1])
    depth = 0
    for token in tokens[1:-1]:
        depth += (token in _OPENING) - (token in _CLOSING)
        if depth < 0:
            return None
    parts = listed(inner) if tokens[0] == r"\{" else split(inner, ",", ";")
    return Bracketed(tokens[0], parts, tokens[-1]) if len(parts) > 1 or tokens[0] == r"\{" else None


def _tokens(text: str) -> Iterator[str]:
    return (found[0] for found in _TOKEN.finditer(text))
