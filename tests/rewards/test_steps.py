from __future__ import annotations

import itertools
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stopwatch import cpu_seconds

from ippo.rewards import CHAIN_CLASSES, Step, classify_chain, parse_step
from ippo.rewards.steps import mark_lines

STEPS = ["7+5=12", "12-3=9", "9*2=18"]


class TestParseStep:
    def test_reads_without_judging(self) -> None:
        assert parse_step("7-5=99") == Step(Fraction(7), "-", Fraction(5), Fraction(99))
        assert parse_step("1/0=0") == Step(Fraction(1), "/", Fraction(0), Fraction(0))

    @pytest.mark.parametrize("other", ["5+7=12", " 7 + 5 = 12 ", "7.0+5=12.00", "+7+5=12"])
    def test_ways_to_write_one_step(self, other: str) -> None:
        assert parse_step(other) == parse_step("7+5=12")

    def test_only_sums_and_products_commute(self) -> None:
        assert parse_step("2*9=18") == parse_step("9*2=18")
        assert parse_step("3-12=9") != parse_step("12-3=9")
        assert parse_step("4/2=2") != parse_step("2/4=2")

    def test_signs_belong_to_numbers(self) -> None:
        assert parse_step("-3--5=2") == Step(Fraction(-3), "-", Fraction(-5), Fraction(2))

    @pytest.mark.parametrize(
        "line",
        [
            "",
            "7+5",
            "7+5=",
            "7+5=12=12",
            "7+5+1=13",
            "7 plus 5 = 12",
            "7+5=12 pens",
            "so 7+5=12",
            "(7)+5=12",
            "٧+٥=١٢",
            "9**9**9=1",
            "2**3=8",
            "__import__('os').getcwd()=1",
            "9" * 19 + "+1=1",
            "7+5=12" + " " * 200 + "and 3 are stolen",
        ],
    )
    def test_anything_else_is_no_step(self, line: str) -> None:
        assert parse_step(line) is None

    def test_a_number_is_never_cut(self) -> None:
        for blanks in range(130):
            step = parse_step("7+5=" + " " * blanks + "123")
            assert step is None or step.result == 123


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        (["7+5=12", "12-3=9", "9*2=18", "#### 18"], "faithful"),
        (["5+7=12", "12 - 3 = 9", "2*9=18.0", "#### 18.0"], "faithful"),
        (["7+5=12", "", "12-3=9", "  ", "9*2=18", "", "#### 18"], "faithful"),
        (["7+5=12", "12-3=9", "9*2=18 #### 18"], "faithful"),
        (["7+5=12", "12-3=9", "9*2=18", "#### 18 pens", "Done."], "faithful"),  # the chain ends at the answer
        (["7+5=12", "12-3=9", "9*2=18", "#### 17"], "wrong"),
        (["7+5=12", "12-3=9", "9*2=18"], "wrong"),
        (["7+5=12", "12-3=9", "9*2=18", "#### 18", "#### "], "wrong"),
        ([], "wrong"),
        (["7+5=12", "9*2=18", "#### 18"], "shortcut"),
        (["12-3=9", "#### 18"], "shortcut"),
        (["#### 18"], "shortcut"),
        (["7+5=12", "4*6=25", "12-3=9", "9*2=18", "#### 18"], "nonsense"),
        (["7+5=12", "1+1=2", "12-3=9", "9*2=18", "#### 18"], "nonsense"),  # true, but of no use
        (["7+5=12", "7+5=12", "12-3=9", "9*2=18", "#### 18"], "nonsense"),
        (["Let us see:", "7+5=12", "12-3=9", "9*2=18", "#### 18"], "nonsense"),
        (["7+5=12", "12-3=9", "9*2=18", "hence", "#### 18"], "nonsense"),
        (["#### 12", "7+5=12", "12-3=9", "9*2=18", "#### 18"], "nonsense"),
        (["7+5=13", "12-3=9", "9*2=18", "#### 18"], "wrong_step"),
        (["7+5=12", "12-4=9", "9*2=18", "#### 18"], "wrong_step"),
        (["7+5=12", "3-12=9", "9*2=18", "#### 18"], "wrong_step"),
        (["12-3=9", "7+5=12", "9*2=18", "#### 18"], "wrong_step"),  # out of order
        (["7+5=12 pens", "12-3=9", "9*2=18", "#### 18"], "wrong_step"),
        (["7+5=12 12-3=9 9*2=18", "#### 18"], "wrong_step"),
    ],
)
def test_class_of_a_chain(chain: list[str], expected: str) -> None:
    assert classify_chain("\n".join(chain), STEPS, "18") == expected


def test_junk_far_to_the_right_is_seen() -> None:
    chain = "7+5=12\n12-3=9" + " " * 200 + "4*6=25\n9*2=18\n#### 18"
    assert classify_chain(chain, STEPS, "18") == "wrong_step"


@given(st.lists(st.booleans(), min_size=3, max_size=3), st.integers(0, 4), st.randoms())
def test_what_is_left_out_and_what_is_added_names_the_class(kept: list[bool], added: int, rng: random.Random) -> None:
    lines = [step for step, stays in zip(STEPS, kept, strict=True) if stays]
    for _ in range(added):
        lines.insert(rng.randint(0, len(lines)), rng.choice(["1+1=2", "4*6=25", "so", "9*2=19", "18"]))
    names = {(True, 0): "faithful", (False, 0): "shortcut", (True, 1): "nonsense", (False, 1): "wrong_step"}
    expected = names[all(kept), min(added, 1)]
    assert classify_chain("\n".join([*lines, "#### 18"]), STEPS, "18") == expected


@given(st.lists(st.sampled_from(["7+5=12", "5+7=12", "12-3=9", "9*2=18", "1+1=2", "", "so"]), max_size=7))
def test_marked_lines_are_a_longest_common_subsequence(lines: list[str]) -> None:
    response = "".join(f"{line}\n" for line in [*lines, "#### 18"])
    marked = mark_lines(response, STEPS)
    assert "".join(line for line, _ in marked) == response.removesuffix("#### 18\n")
    assert [mark is None for _, mark in marked] == [not line for line in lines]
    chosen = [parse_step(line) for line, mark in marked if mark]
    true = [parse_step(step) for step in STEPS]
    subsets = [part for size in range(4) for part in itertools.combinations(true, size)]
    assert tuple(chosen) in subsets
    written = [parse_step(line) for line in lines]
    common = [part for part in subsets if part in set(itertools.combinations(written, len(part)))]
    assert len(chosen) == max(map(len, common))


@given(st.text(), st.lists(st.text(), max_size=4), st.text(), st.booleans())
def test_arbitrary_text_never_raises(text: str, steps: list[str], answer: str, closed: bool) -> None:
    response = f"{text}\n#### {answer}" if closed else text
    assert classify_chain(response, steps, answer) in CHAIN_CLASSES
    parse_step(text)


@pytest.mark.parametrize(
    "chain", ["1+1=2\n" * 10_000, "9" * 1_000_000 + "\n", " " * 1_000_000 + "\n", "7+5=12" * 100_000]
)
def test_an_endless_chain_is_classed_at_once(chain: str) -> None:
    assert classify_chain(f"{chain}#### 18", STEPS, "18") in ("wrong_step", "shortcut")
    assert cpu_seconds(lambda: classify_chain(f"{chain}#### 18", STEPS, "18")) < 0.5
