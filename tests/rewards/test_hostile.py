"""What a model writes is data: a quick version of ``benchmarks/fuzz.py``, and the harness itself put to the test."""

from __future__ import annotations

import importlib.util
import sys
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stopwatch import cpu_seconds

from ippo.rewards import CHAIN_CLASSES, classify_chain, final_answer, parse_step

STEPS = ["7+5=12", "12-3=9"]


def load_harness() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"
    spec = importlib.util.spec_from_file_location("fuzz", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


harness: Any = load_harness()
PIECES = st.lists(st.sampled_from(harness._PIECES) | st.text(max_size=8), max_size=24).map("".join)


def test_every_parser_withstands_the_quick_fuzz(capsys: pytest.CaptureFixture[str]) -> None:
    assert harness.main(["--inputs", "4000", "--seed", "1"]) == 0
    assert capsys.readouterr().out.count("\n| ") == 1 + len(harness.PARSERS)


def test_the_harness_finds_a_crash_and_a_slow_parser() -> None:
    def crash(text: str) -> int:
        return int(text.partition("####")[2] or 0)

    def slow(text: str) -> int:
        return sum(ord(character) for character in text)

    records = harness.fuzz({"crash": crash, "slow": slow, "fine": len}, 400, seed=0, limit=0.005)
    assert any("ValueError" in failure for failure in records["crash"].failures)
    assert records["slow"].failures
    assert "megabyte" in records["slow"].what
    assert not records["fine"].failures


def test_the_texts_are_of_every_kind_and_come_again() -> None:
    made = [harness.text_number(3, number) for number in range(200)]
    assert {kind for kind, _ in made} == {"megabyte", *harness.KINDS}
    assert made[:50] == [harness.text_number(3, number) for number in range(50)]


@pytest.mark.parametrize("name", list(harness.PARSERS))
@settings(max_examples=60, deadline=None)
@given(text=PIECES)
def test_no_text_raises(name: str, text: str) -> None:
    harness.PARSERS[name](text)


@settings(max_examples=100, deadline=None)
@given(text=PIECES)
def test_what_is_read_is_a_bounded_number_and_a_known_class(text: str) -> None:
    answer = final_answer(text)
    assert answer is None or max(abs(Fraction(answer).numerator), Fraction(answer).denominator) < 10**40
    assert classify_chain(text, STEPS, "9") in CHAIN_CLASSES


@pytest.mark.parametrize("text", ["9**9**9=1", "9**9**9", "<<9**9**9=1>>", "9^9=387420489"])
def test_powers_are_text(text: str) -> None:
    assert parse_step(text) is None
    assert final_answer(f"#### {text}") is None
    assert classify_chain(f"7+5=12\n{text}\n12-3=9\n#### 9", STEPS, "9") == "nonsense"


@pytest.mark.parametrize("unit", ["\n", "\r", "\u2028", "1\n", "  \n", "7+5=12\n", "{", "\\frac{", "####", "#### 9\n"])
def test_a_right_answer_after_a_megabyte_is_classed_at_once(unit: str) -> None:
    text = unit * (1_000_000 // len(unit)) + "\n#### 9"
    assert classify_chain(text, STEPS, "9") in CHAIN_CLASSES
    assert cpu_seconds(lambda: classify_chain(text, STEPS, "9")) < 0.05


def test_the_cut_of_a_long_chain_makes_no_step() -> None:
    """The longest chain that is read ends within ``12-3=99``: its first half would be a true step."""
    filler = "7+5=12\n" + " " * (2**16 - 15) + "\n"
    assert len(filler + "12-3=9") - 2**16 == -1
    assert classify_chain(f"{filler}12-3=99\n#### 9", STEPS, "9") == "shortcut"


@pytest.mark.parametrize("end", ["", "####", "7+5=12\n"])
def test_a_megabyte_of_any_one_piece_is_read_in_no_time(end: str) -> None:
    """A million random texts hold two megabytes of newlines alone; they found what took 386 ms."""
    for piece in {*harness._CONTROL, *harness._PIECES, *harness._BRACKETS, " \n", "\t ", "- \n", "1.\n"}:
        text = end + piece * (harness.MEGABYTE // len(piece))
        for name in ("equations", "classify_solution"):
            parser = harness.PARSERS[name]
            assert cpu_seconds(partial(parser, text), tries=2) < 0.05, (name, piece)
