from __future__ import annotations

from typing import Any

import pytest

from ippo.rewards import CHOICES, chosen

OPTIONS = ["sky", "bed", "sea", "car", "a tree"]


@pytest.mark.parametrize(
    ("line", "letter"),
    [
        *[(line, "C") for line in ("C", "c", "C.", "(C)", "[C]", "(c).", "C)", "**C**", "`C`", "*C*.", "$C$", "= C")],
        *[(line, "C") for line in (r"\boxed{C}", r"$\boxed{\text{C}}$", "Option C", "choice (C)", "Answer: C")],
        *[(line, "C") for line in ("The correct answer is C.", "C ####", "(C) sea", "C sea", "C: sea.", "C - the sea")],
        *[(line, "C") for line in ("**(C)** sea", "(C) because we swim there", "C, sea", "(C) x")],
        ("E tree", "E"),
        ("B a bed", "B"),
    ],
)
def test_a_letter_alone_or_delimited_or_with_its_own_text(line: str, letter: str) -> None:
    assert chosen(f"So it is B.\n#### {line}", OPTIONS) == letter


@pytest.mark.parametrize(
    "line",
    [
        *("A bed", "A bed is soft, so B", "I", "I think B", "F", "Bed", "bed", "", "C x", "Sea"),
        *("A or B", "A, B", "(A) or (B)", "(a) or (b)", "A/B", "A and B", "AB", "(A) B", "A) b)", "A.B."),
        *("(B) is wrong", "(B), not the sea", "(B) bed and car", "B: but it could be the sky", "not C", "(B"),
    ],
)
def test_an_article_a_pronoun_and_two_letters_are_no_choice(line: str) -> None:
    assert chosen(f"#### {line}", OPTIONS) is None


def test_a_word_that_is_the_option_s_own_text_may_follow_the_letter_a() -> None:
    assert chosen("#### A bed", ["bed", "sky"]) == "A"
    assert chosen("#### A bed", ["sky", "bed"]) is None


def test_without_known_options_any_letter_counts_and_no_text() -> None:
    assert [chosen(f"#### {line}") for line in ("C", "z", "(C)", "A bed", "A or B")] == ["C", "Z", "C", None, None]
    assert chosen("C") is None


def test_reward_and_check_know_the_options_of_each_row() -> None:
    texts = ["A bed.\n#### B", "#### (B) bed", "#### b", "#### A bed", "B", "#### A\n#### B.", "#### C"]
    columns: dict[str, Any] = {"prompts": [""] * 7, "completions": texts, "answer": ["B"] * 7}
    options = [OPTIONS] * 6 + [OPTIONS[:2]]
    assert CHOICES.reward(**columns, options=options) == [1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    assert CHOICES.check(**columns, options=options)["answer"] == ["B", "B", "B", None, None, "B", None]
    assert CHOICES.check(**columns)["answer"] == ["B", "B", "B", None, None, "B", "C"]
