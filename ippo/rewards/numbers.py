"""The one grammar of a number: what a text must be to say exactly one, and which.

A number may have a sign, a currency and a unit around it, and stand in Markdown or in LaTeX. Whatever else stands
beside it could change its value, and makes the text unreadable: no part of a number is ever read for the whole.
"""

from __future__ import annotations

import re
from fractions import Fraction

_LONGEST = 256  # characters of a text that may be a number; a longer one is none
_DIGITS = 40  # of a number, above and below its fraction bar: enough for every constant of physics
_TOO_LARGE = 10**_DIGITS

MONEY = r"(?:US)?\\?[$€£¥₹]"
_PLAIN = rf"[0-9]{{1,{_DIGITS}}}"
_COMMAS = r"[1-9][0-9]{0,2}(?:,[0-9]{3}){1,12}"  # 1,250; but 0,250 and 12,5 and 12,34,567 may mean something else
_SPACES = r"[1-9][0-9]{0,2}(?:[ ][0-9]{3}){1,12}"
_WHOLE = rf"(?:{_COMMAS}|{_PLAIN})"
_DECIMAL = rf"(?:(?:{_COMMAS}|{_SPACES}|{_PLAIN})(?:\.{_PLAIN})?|\.{_PLAIN})"
_TIMES = r"(?:\*|x|×|·|\\times|\\cdot)"
_SIGN = re.compile(rf"([-+]?)(?:({MONEY})\s*([-+]?))?")  # -$5 and $-5
_FRACTION = re.compile(rf"(?:({_WHOLE})\s+)?({_WHOLE})\s*/\s*({_WHOLE})")
_LATEX_FRACTION = re.compile(rf"({_WHOLE})?\s*\\frac\{{\s*([-+]?{_DECIMAL})\s*\}}\{{\s*({_DECIMAL})\s*\}}")
_POWER = re.compile(rf"(?:({_DECIMAL})\s*{_TIMES}\s*)?10\s*(?:\^|\*\*)\s*(\{{)?\s*([-+]?[0-9]{{1,2}})(?(2)\s*\}})")
_PLAIN_DECIMAL = re.compile(rf"({_DECIMAL})(?:[eE]([-+]?[0-9]{{1,2}}))?")

_SPELLINGS = (  # of one and the same sign; none of them joins what stood apart
    (re.compile("\u2212"), "-"),
    (re.compile(r"\{,\}|,\s*\\!\s*"), ","),
    (re.compile(r"(?<!\\)\\[,;: ]|(?<!^)~|[\u00a0\u2007\u2009\u202f]"), " "),
    (re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|([0-9]))\s*(?:\{([^{}]*)\}|([0-9]))"), r"\\frac{\1\2}{\3\4}"),
)
_TEXT = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_WRAPPINGS = (  # the whole of what stands within
    re.compile(r"(\*\*|\*|__|_|`)(.+)\1\.?"),
    re.compile(r"(\$\$?)((?:[^$\\]|\\.)+)\1\.?"),
    re.compile(r"(\\\()(.+)\\\)\.?"),
    re.compile(r"(\\\[)(.+)\\\]\.?"),
    re.compile(r"(\\(?:boxed|fbox))\s*\{(.+)\}\.?"),
)
_BOLD_NUMBER = re.compile(r"\*\*([^*]+)\*\*(\s(?:(?!\*\*).)*)")  # **18** apples
_LABEL = re.compile(r"([A-Za-z][A-Za-z ]{0,40})?\s*[:=](?!=)\s*")  # Answer: 18, x = 18, = 18

_WORD = r"[A-Za-z°]+(?:['’-][A-Za-z]+)*(?:\^\{-?[1-4]\}|\^-?[1-4]|[²³])?"
_REST = re.compile(  # a unit, or words, and no more of a sentence than its stops
    rf"""
    (?:\s*(?:\\?%|°|\^\s*\\circ|\^\s*\{{\\circ\}}|{MONEY}))?
    (?:(?:[.,;:]?\s+\(?|\(?|\s*/\s*|-){_WORD}(?:\)?[.,;:]?(?:\s+\(?|\s*/\s*){_WORD})*\)?)?
    [.,;:]?\s*
    """,
    re.VERBOSE,
)
_UNIT_LETTERS = frozenset("mgshlLNJWVACF")  # of 5k, 5M, 5x and 5i nobody knows the number
_MILLIONS = frozenset({"m", "mm"})  # where it is money
_AMOUNTS = frozenset(
    word
    for words in (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen",
        "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million",
        "billion trillion dozen lakh crore bn mn mil mio mille milliard half halves third fourth quarter fifth sixth",
        "seventh eighth ninth tenth hundredth thousandth squared cubed factorial twice thrice double triple negative",
        "minus below pi or not nor either oder ou",
    )
    for word in words.split()
)


def read_number(text: str) -> Fraction | None:
    r"""The number that ``text`` says, or None if it says none, or more than one, or one that may mean two things.

    Signs (also U+2212), currencies, thousands (``1,250``, ``1 250``, ``1{,}250``), decimals, fractions, mixed numbers
    and powers of ten are read. A unit does not count, nor does the percent sign: ``50%`` is 50.

    Example:
        >>> [str(read_number(text)) for text in ("-$1,250.50", "2 2/3 cups", "3.2*10^5", r"**\frac{1}{2}**", "50%")]
        ['-2501/2', '8/3', '320000', '1/2', '50']
        >>> [read_number(text) for text in ("12 or 15", "12,5", "5 - 3 = 2", "3:30", "5 million", "5x", "10^999999999")]
        [None, None, None, None, None, None, None]
    """
    found = leading_number(_bare(_TEXT.sub(r" \1", spelled_one_way(text)))) if len(text) <= _LONGEST else None
    if found is None:
        return None
    value, rest, is_money = found
    return value if _leaves_alone(rest, is_money) else None


def leading_number(text: str) -> tuple[Fraction, str, bool] | None:
    """The number that ``text`` starts with, what stands behind it, and whether it is money.

    The rest must be looked at before the number is believed: it may go on there.

    Args:
        text: as :func:`spelled_one_way` gives it.

    Example:
        >>> leading_number("1/2 cup"), leading_number("cup")
        ((Fraction(1, 2), ' cup', False), None)
    """
    start = _SIGN.match(text)
    assert start is not None  # all of it is optional
    value: Fraction | None = None
    signs, place = (start[1] or "") + (start[3] or ""), start.end()
    if found := _FRACTION.match(text, place) or _LATEX_FRACTION.match(text, place):
        value = _fraction(found[1], found[2], found[3], signed=bool(signs))
    elif found := _POWER.match(text, place):
        value = _plain(found[1] or "1") * Fraction(10) ** int(found[3])
    elif found := _PLAIN_DECIMAL.match(text, place):
        value = _plain(found[1]) * Fraction(10) ** int(found[2] or 0)
    if found is None or value is None or len(signs) > 1 or max(abs(value.numerator), value.denominator) >= _TOO_LARGE:
        return None
    return (-value if signs == "-" else value), text[found.end() :], start[2] is not None


def spelled_one_way(text: str) -> str:
    """Minus signs, thousands, spaces and fractions in one spelling each."""
    for pattern, sign in _SPELLINGS:
        text = pattern.sub(sign, text)
    return text


def _fraction(whole: str | None, over: str, under: str, signed: bool) -> Fraction | None:
    """A fraction or a mixed number; None for what is no number, or may be two: ``1/0``, ``2 5/3``, and ``1 250/300``,
    whose first part may be thousands."""
    top, bottom = _plain(over), _plain(under)
    if bottom == 0 or (over[0] in "-+" and (signed or whole)):
        return None
    if whole and not (over.isdigit() and under.isdigit() and top < bottom and (len(over) != 3 or len(whole) > 3)):
        return None
    return _plain(whole or "0") + top / bottom


def _plain(number: str) -> Fraction:
    return Fraction(number.replace(",", "").replace(" ", ""))


def _bare(text: str) -> str:
    """``text`` without the wrappings and labels that say nothing of the value."""
    text = text.strip()
    for _ in range(6):
        label = _LABEL.match(text)
        if label and not _speaks_of_amounts(label[1] or ""):
            text = text[label.end() :]
        elif bold := _BOLD_NUMBER.fullmatch(text):
            text = bold[1].strip() + bold[2]
        elif wrapped := next((match for pattern in _WRAPPINGS if (match := pattern.fullmatch(text))), None):
            text = wrapped[2].strip()
        else:
            break
    return text


def _leaves_alone(rest: str, is_money: bool) -> bool:
    """Whether what stands behind a number leaves its value alone: a unit, words that say no amount, a full stop."""
    words = re.findall("[A-Za-z]+", rest)
    letters = {word for word in words if len(word) == 1}
    if _REST.fullmatch(rest) is None or (is_money and not _MILLIONS.isdisjoint(word.lower() for word in words)):
        return False
    return letters <= _UNIT_LETTERS and not _speaks_of_amounts(rest)


def _speaks_of_amounts(words: str) -> bool:
    return any({word, word.removesuffix("s")} & _AMOUNTS for word in re.findall("[a-z]+", words.lower()))
