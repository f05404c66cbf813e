from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stopwatch import cpu_seconds

from ippo.rewards import CHAIN_CLASSES, classify_solution, equations, sound
from ippo.rewards.arithmetic import number


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Natalia sold 48/2 = <<48/2=24>>24 clips in May.", {"48/2=24": True}),
        ("She earned 0.2 x 50 = $<<0.2*50=10>>10.", {"0.2*50=10": True}),
        ("12 - 5 × 2 = 2, and 9 ÷ 3 = 4.", {"12-5*2=2": True, "9/3=4": False}),
        ("$1,200 + $5 = $1,205 in all", {"1200+5=1205": True}),
        (r"$\frac{1}{2} \cdot 6 = 3$", {"((1)/(2))*6=3": True}),
        ("2*(3+4)=14 (yes)", {"2*(3+4)=14": True}),
        ("(3+4)(2)=15", {"(3+4)(2)=15": False}),
        ("-5+7=2", {"-5+7=2": True}),
        ("5-7=-2", {"5-7=-2": True}),
        ("3x = 12 + 3 = 15", {"12+3=15": True}),
        ("2*3 = 6 = 7-1", {"2*3=6": True}),  # nothing is worked out on the left of the second sign
        ("12 + 5 = 17/hour", {"12+5=17": True}),
        ("20/3=6.67, 20/3 = 6.66, 20/3=7", {"20/3=6.67": True, "20/3=6.66": True, "20/3=7": False}),
        ("48 * 0.3333333333333333 = 16", {"48*0.3333333333333333=16": True}),
        ("50*20%=10; 0.2*100=20%; 100%-20%=80%", {"50*20%=10": True, "0.2*100=20%": True, "100%-20%=80%": True}),
        ("- 3+4=7\n* 5+5=10\n2) 1+1=3", {"3+4=7": True, "5+5=10": True, "1+1=3": False}),
        ("**3 + 4 = 7** and so", {"3+4=7": True}),
        (r"\(3+4=7\), then \[5+5 &= \boxed{10}\]", {"3+4=7": True, "5+5=10": True}),
        (r"$3+4=7 \\ 5+5=10$", {"3+4=7": True, "5+5=10": True}),
        ("3 * 4 = 12. 5 + 5 = 11", {"3*4=12": True, "5+5=11": False}),
    ],
)
def test_sums_are_found_and_checked(text: str, found: dict[str, bool]) -> None:
    assert {one.text: one.holds for one in equations(text)} == found


@pytest.mark.parametrize(
    "text",
    [
        "x + 2 = 5",
        "2x + 3 = 7",
        "x2+3=9",
        "half of 10 + 4 = 9",
        "20% of 50 = 10",
        "182 pages x 1/2 = 91 pages",
        "9 skeins + 15 skeins = 52 skeins",
        "2^3 = 8",
        "10 + 2 = 3x",
        "2 1/2 + 1 = 4",
        "12/2/5 = 30",
        "1/0 = 0",
        "100 - 20% = 80",
        "6:00 + 30 = 6:30",
        "2,5 + 1 = 3,5",
        "5+3 >= 9",
        "5+3 != 9",
        "5 + 3 == 9",
        "a = 5",
        "٧+٥=١٣",
        "2**3=9",
        "__import__('os').getcwd()+1=1",
        "2+2 is\n= 5",
    ],
)
def test_what_is_not_plainly_a_sum_is_left_alone(text: str) -> None:
    assert equations(text) == []
    assert sound(text)


@given(st.integers(-999, 999), st.integers(-999, 999), st.integers(-3, 3), st.sampled_from("+-*"))
def test_a_sum_holds_exactly_when_its_result_is_right(left: int, right: int, off: int, sign: str) -> None:
    result = {"+": left + right, "-": left - right, "*": left * right}[sign]
    (found,) = equations(f"So {left if left >= 0 else f'({left})'} {sign} ({right}) = {result + off}")
    assert found.holds == (off == 0)
    assert found.value == Fraction(result)


@given(st.text(alphabet="0123456789.+-*/()%= x$,<>\n", max_size=60))
def test_arbitrary_text_never_raises(text: str) -> None:
    for found in equations(text):
        assert isinstance(found.value, Fraction)
    number(text)


@pytest.mark.parametrize(
    "text", ["1+" * 10**5 + "1=2", "(" * 10**5 + "1=1", "=" * 10**5, " " * 10**5 + "=", "9" * 10**6 + "+1=1"]
)
def test_an_endless_text_is_read_at_once(text: str) -> None:
    assert cpu_seconds(lambda: equations(text)) < 0.5


@pytest.mark.parametrize(
    ("response", "right", "answer", "expected"),
    [
        ("48/2 = <<48/2=24>>24\n48+24 = <<48+24=72>>72\n#### 72", True, "72", "faithful"),
        ("48/2 = 24 and 48+24 = 72\n#### 72", True, "72", "faithful"),
        (r"$48+24=72$, so \boxed{72}", True, "72", "faithful"),
        (r"$1/2+1/4=3/4$, so \boxed{\frac{3}{4}}", True, r"\frac{3}{4}", "faithful"),
        ("48/2 = 25\n48+24 = 72\n#### 72", True, "72", "wrong_step"),
        ("48/2 = 24\n#### 72", True, "72", "unverifiable"),  # no sum comes to the answer
        ("It is 72.\n#### 72", True, "72", "unverifiable"),
        (r"$x+x=2x$, so \boxed{2x}", True, "2x", "unverifiable"),
        ("Beds are soft.\n#### B", True, "B", "unverifiable"),
        ("48+24 = 72\n#### 71", False, "71", "wrong"),
        ("48+24 = 73", False, None, "wrong"),
        (r"\boxed{9^{9^{9}}}", None, "9^{9^{9}}", "unverifiable"),
    ],
)
def test_class_of_a_solution(response: str, right: bool | None, answer: str | None, expected: str) -> None:
    assert classify_solution(response, right, answer) == expected
    assert expected in CHAIN_CLASSES
