from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stopwatch import cpu_seconds

from ippo.rewards import final_answer, is_correct, numeric_reward


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("#### 12", "12"),
        ("####12", "12"),
        ("7+5=12\n####  12 \n", "12"),
        ("####\n12", "12"),
        ("#### 36.0", "36"),
        ("#### 007", "7"),
        ("#### 2.75", "11/4"),
        ("#### -3", "-3"),
        ("#### +3", "3"),
        ("#### -0", "0"),
        ("#### $1,250", "1250"),
        ("#### $-5", "-5"),
        ("#### 1,234,567.50", "2469135/2"),
        ("#### 4 pens", "4"),
        ("#### 4.", "4"),
        ("#### 3\n#### 4", "4"),
        ("##### 4", "4"),
        ("#### " + "9" * 40, "9" * 40),
        ("#### 18 ####", "18"),  # a heading may be closed
        ("####: 18", "18"),
        ("#### 42\n" + " and the reasoning above confirms it." * 12, "42"),  # the answer is one line
    ],
)
def test_final_answer_in_canonical_form(response: str, expected: str) -> None:
    assert final_answer(response) == expected


@pytest.mark.parametrize(
    "response",
    [
        "",
        "the answer is 4",
        "### 4",
        "####",
        "#### ",
        "#### four",
        "#### x 4",
        "#### 4\n####",  # the last mark counts
        "#### ٣",  # Arabic-Indic and full-width digits are digits for int(), but not here
        "#### ４",
        "#### 1４",
        "18 ####",
        "#### 4\n#### ####",
        "#### " + "9" * 41,
        "#### 2." + "3" * 40,
        "#### nan",
        "#### inf",
    ],
)
def test_no_final_answer(response: str) -> None:
    assert final_answer(response) is None


def test_a_number_is_never_cut() -> None:
    for blanks in range(70):
        assert final_answer("####" + " " * blanks + "12345") in ("12345", None)


@pytest.mark.parametrize(
    "response",
    ["#### " + "9" * 1_000_000, "####" * 250_000, "####" + " " * 1_000_000, "#### 1" + ",000" * 250_000],
    ids=["nines", "marks", "blanks", "thousands"],
)
def test_a_megabyte_of_anything_is_refused_at_once(response: str) -> None:
    assert final_answer(response) is None
    assert cpu_seconds(lambda: final_answer(response)) < 0.2


@given(st.fractions(max_denominator=10**6, min_value=-(10**9), max_value=10**9))
def test_the_canonical_form_reads_back_to_the_same_number(number: Fraction) -> None:
    written = final_answer(f"#### {number}")
    assert written == str(number)
    assert is_correct(f"#### {written}", written)
    assert not is_correct(f"#### {written}", str(number + 1))


@given(st.integers(-(10**15), 10**15))
def test_equal_numbers_give_equal_strings(number: int) -> None:
    forms = (f"{number}", f"{number:,}", f"{number}.00", f"{number:+}", f"${number}")
    assert {final_answer(f"#### {form}") for form in forms} == {str(number)}


@given(st.text(), st.text(alphabet="0123456789.,+-$ ٣４e#"))
def test_arbitrary_text_never_raises(before: str, after: str) -> None:
    answer = final_answer(f"{before}####{after}")
    assert answer is None or str(Fraction(answer)) == answer


@pytest.mark.parametrize(
    ("response", "answer", "expected"),
    [
        ("5+4=9\n#### 9", "9", True),
        ("#### 9.0", "9", True),
        ("#### 9", "9.00", True),
        ("#### 1,000", "1000", True),
        ("#### 9", "5+4=9\n#### 9", True),  # a gold solution in full
        ("#### 8", "9", False),
        ("#### -9", "9", False),
        ("9", "9", False),
        ("", "9", False),
        ("", "", False),  # two missing answers are not the same answer
        ("#### nine", "nine", False),
        ("#### 2.5", "2.5", True),
        ("#### 2.5", "5", False),
        ("#### 5", "5/2", False),
        ("#### 0.5", "1/2", True),
        ("#### 1/2", "1", False),
    ],
)
def test_is_correct(response: str, answer: str, expected: bool) -> None:
    assert is_correct(response, answer) is expected


def test_numeric_reward_takes_further_columns() -> None:
    rewards = numeric_reward(["p"] * 3, ["#### 4", "#### 5", "4"], answer=["4"] * 3, steps=[[]] * 3)
    assert rewards == [1.0, 0.0, 0.0]


def test_numeric_reward_refuses_columns_of_another_length() -> None:
    with pytest.raises(ValueError, match="shorter"):
        numeric_reward(["p", "p"], ["#### 4", "#### 5"], answer=["4"])
