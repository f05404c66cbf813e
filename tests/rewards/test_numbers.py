from __future__ import annotations

from fractions import Fraction
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stopwatch import cpu_seconds

from ippo.rewards.numbers import read_number

READ = {
    "5": "5 5. 5.0 005 +5 5,",
    "-5": "-5 −5 -5.00",
    "1/2": r".5|0.5|1/2|1 / 2|2/4|\frac{1}{2}|\frac12|\dfrac{1}{2}|\tfrac12|\frac{ 1 }{ 2 }|5e-1|5*10^{-1}",
    "-1/2": r"-.5|-1/2|-\frac{1}{2}|\frac{-1}{2}|−\frac12",
    "8/3": r"2 2/3|2\frac{2}{3}|2\frac23|2 \dfrac{2}{3}|8/3",
    "1250": r"1250|1,250|1 250|1{,}250|1\,250|1,\!250|1, \! 250|1\ 250|1.25e3|1.25E+3|1.250 x 10^3",
    "1234567": "1234567|1,234,567|1 234 567|1{,}234{,}567",
    "1000000": r"10^6|10^{6}|10**6|1e6|1\times10^6|1 \cdot 10^{6}|1×10^6",
    "50": r"50%|50 %|50\%|50 percent|$50|$ 50|€50|50€|50 $|£50.00|US$50|\$50|50 dollars|50°|50^\circ|50^{\circ}",
    "-7": "-$7|$-7|-€7|-$7.00",
    "18": "**18**|*18*|`18`|__18__|**18**.|$18$|$$18$$|\\(18\\)|\\[18\\]|\\boxed{18}|$\\boxed{18}$."
    "|\\boxed {18}|\\fbox{18}"
    "|= 18|=18|: 18|x = 18|Answer: 18|**Answer:** 18|"
    "**Answer:** 1.8*10^1|Final answer: **18**|18 apples|18 red apples.|18 km|18km|18 km/h"
    "|18 m/s^2|18 cm²|18 cm^{2}|18 \\text{ cm}|18\\text{cm}^2|18 (apples)|18-mile|18 left over|18. That is all.|18/hour"
    "|**18** apples|18 times|18 miles per hour|18th|18, as was asked|18 people's",
}
UNREADABLE = [
    *("", "five", "x", "x 4", "-", "$", ".", "1/", "/2", "nan", "inf", "½", "2½", "٣", "1٣", "４"),
    *("12 or 15", "12 or fifteen", "12, 15", "12 and 15", "12; 15", "5 to 6", "5 or more", "not 5", "5 - 3 = 2", "5=5"),
    *("12,5", "1,25", "1,2500", "12,34,567", "0,250", "1.250,5", "1,250 000", "1.2.3", "5..", "5...", "12. 5", "1 2"),
    *("1 2 3", "1 25", "0 250", "1 250/300", "1 250/3", "2 5/3", "1.5 1/2", "1/2/3", "1/0", "1/2.5", "3/4/2026"),
    *("3:30", "18*2", "18+2", "18-2", "18 - 2", "18^2", "18**2", "2^10", "18_5", "18!", "18?", "(18)", "- 18", "--18"),
    *(
        "-$-18",
        "18-",
        "18x",
        "18 x",
        "18k",
        "18 K",
        "18M",
        "18 i",
        "18e",
        "18 pi",
        "$18m",
        "$18 mm",
        "18%%",
        "~18",
        "≈18",
    ),
    *("18 million", "18 thousand", "18 dozen", "18 hundredths", "18 and a half", "18 thirds", "18 bn", "18 squared"),
    *("<18", "> 18", "<= 18", "!= 18", "== 18", "18 apples and 5 pears", "18 apples = 5", "18 -x", "18 below"),
    *(
        "10^999999999",
        "1e999999999",
        "10^{6",
        "10^6}",
        "10^100",
        "1e41",
        "1e-41",
        "9" * 41,
        "0." + "3" * 40,
        "1/" + "9" * 41,
    ),
    *(
        "**2**300",
        "**18**5",
        "2**3",
        "\\frac123",
        "\\frac{1}{2}3",
        "2.\\frac12",
        "-\\frac{-1}{2}",
        "\\frac{1}{0}",
        "\\sqrt{2}",
    ),
    *("five: 18", "half = 18", "18 ou vingt", "18 \\text{ or } 19", "18\n19", "18 " + "a" * 300),
]


def spellings() -> list[tuple[str, str]]:
    return [(text, value) for value, texts in READ.items() for text in texts.split("|" if "|" in texts else " ")]


@pytest.mark.parametrize(("text", "value"), spellings())
def test_every_spelling_is_one_number(text: str, value: str) -> None:
    assert read_number(text) == Fraction(value)


@pytest.mark.parametrize("text", UNREADABLE)
def test_what_may_be_another_number_is_unreadable(text: str) -> None:
    assert read_number(text) is None


@given(st.fractions(max_denominator=10**9), st.sampled_from(["", "$", "-", " apples", "%", ".", " cm^2"]))
def test_a_number_is_read_whole_or_not_at_all(number: Fraction, around: str) -> None:
    text = f"{around}{number}" if around in ("$", "-") else f"{number}{around}"
    found = read_number(text)
    expected = -number if around == "-" else number
    assert found is None or found == expected
    assert (
        found is not None or (around == "-" and number < 0) or max(abs(number.numerator), number.denominator) >= 10**40
    )


@given(st.text(alphabet="0123456789.,/ -+$%e^*{}\\frac=:xk", max_size=40))
def test_signs_around_digits_never_make_a_number_of_other_digits(text: str) -> None:
    """A plain integer is read only where all the digits of the text are its own."""
    found = read_number(text)
    if found is not None and not any(sign in text for sign in "./e^f%"):
        assert "".join(filter(str.isdigit, text)).lstrip("0") == str(abs(found)).lstrip("0")


@pytest.mark.parametrize(
    "piece", ["9", "1 ", "1,", " (a", "a-", "-a", "a^2", "**", "\\frac{1}", "{", "10^", "a.", "/ a", "$"]
)
def test_a_long_line_is_read_or_refused_at_once(piece: str) -> None:
    for start in ("", "5 ", "5 a", "**5** "):
        text = (start + piece * 256)[:256]
        assert cpu_seconds(partial(read_number, text)) < 0.05
        assert cpu_seconds(partial(read_number, f"{text}!")) < 0.05
