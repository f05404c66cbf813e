from __future__ import annotations

import pytest
from stopwatch import cpu_seconds

from ippo.data.competition_math import to_row
from ippo.rewards import boxed_answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\boxed{1} or \boxed{ 2 }", "2"),
        (r"\boxed{\text{a {b} c}}", r"\text{a {b} c}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{a\}b}", r"a\}b"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{1\\} 2}", r"1\\"),  # a line break, then the end
        (r"\boxed {5}", "5"),
        (r"\boxed{5}{6}", "5"),
        (r"\fbox{5}", "5"),
        (r"\boxed{4}, that is \fbox{5}", "5"),
        (r"$\boxed 5$.", "5"),
        (r"\(\boxed 12\)", "12"),
        (r"\boxed5", "5"),
        (r"\boxed 5 apples", "5 apples"),  # never less than may have been meant
        (r"\boxedequation{4}", None),
    ],
)
def test_the_answer_in_the_last_box(response: str, answer: str | None) -> None:
    assert boxed_answer(response) == answer


@pytest.mark.parametrize(
    "empty", [r"\boxed{}", r"\boxed{ }", r"\fbox{\,}", r"\boxed{{}}", r"\boxed", r"\boxed{} \boxed{}"]
)
def test_an_empty_box_does_not_hide_the_one_before(empty: str) -> None:
    assert boxed_answer(rf"\boxed{{5}}. Now in {empty}") == "5"
    assert boxed_answer(empty) is None


@pytest.mark.parametrize("response", ["", "2", r"\boxed{2", r"\boxed{5} so \boxed{2", r"\boxed{" + "{" * 10_000])
def test_no_answer_without_a_box_that_closes(response: str) -> None:
    assert boxed_answer(response) is None


def test_a_longer_text_than_any_answer_is_not_read() -> None:
    assert boxed_answer(r"\boxed{" + "1" * 500 + "}") == "1" * 500
    assert boxed_answer(r"\boxed{" + "1" * 600 + "}") is None
    assert boxed_answer(r"\boxed " + "1" * 600) is None


@pytest.mark.parametrize("piece", [r"\boxed{}", r"\boxed{", r"\fbox", r"\boxed{\\}", "{", "\\"])
def test_a_megabyte_of_boxes_is_read_at_once(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    assert cpu_seconds(lambda: boxed_answer(text)) < 0.05


def test_a_solution_of_math_without_braces_has_its_answer() -> None:
    row = to_row({"problem": "2+3?", "solution": r"It is $\boxed 5$."})
    assert row is not None
    assert row["answer"] == "5"
