from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ippo.recipes.expectations import findings
from ippo.recipes.report import print_report, print_scores, scores, summarise
from ippo.recipes.samples import print_answers, print_extremes
from ippo.rollout.episodes import write_parquet

TESTED = {
    "test/em": 0.1,
    "test/em_greedy": 0.15,
    "test/mv": 0.2,
    "test/pass@k": 0.3,
    "test/false_positive": 0.4,
    "test/unverifiable": 0.0,
    "test/hacked": 0.0,
    "test/other": 9.0,
}


def test_scores_stand_under_the_names_of_the_summary() -> None:
    shares = {"em": 0.1, "em_greedy": 0.15, "mv": 0.2, "pass_at_k": 0.3, "false_positive": 0.4, "unverifiable": 0.0}
    expected = {**shares, "hacked": 0.0, "k": 8, "n": 256}
    assert scores(TESTED, samples=8, problems=256) == expected
    asked = {**TESTED, "test/reward": 0.7}
    assert scores(asked, samples=8, problems=256) == {**expected, "reward": 0.7}


def test_the_report_shows_both_policies_the_time_and_why_it_ended() -> None:
    sft = scores(TESTED, 8, 256)
    none = {"test/unverifiable": 0.0, "test/hacked": 0.0}
    trained = scores({name: value + 0.5 for name, value in TESTED.items()} | none, 8, 256)
    seconds = {"rollout": 10.0, "scoring": 2.0, "update": 4.0}
    shares = ("em", "kept_fraction", "effective_sample_size")
    iterations = [
        {**dict.fromkeys(shares, share), "seconds": seconds, "speed": {"time/iteration": 2.5}} for share in (0.2, 0.6)
    ]
    summary = summarise(sft, trained, iterations, "no episode survived", seed=3)
    assert json.loads(json.dumps(summary)) == summary

    screen = io.StringIO()
    print_report(summary, 30.0, Console(file=screen, width=200))
    text = " ".join(screen.getvalue().split())
    for words in (
        "256 test problems, 8 answers each",
        "EM",
        "0.100",
        "0.600",
        "0.150",
        "0.650",
        "MV@8",
        "0.700",
        "Pass@8",
        "0.800",
    ):
        assert words in text
    for words in ("0.400", "0.900", "warm start 30 s", "rollout 20 s", "scoring 4 s", "update 8 s"):
        assert words in text
    for words in ("2 iterations", "40% of the episodes kept", "no episode survived"):
        assert words in text
    assert "Speed: an iteration 2.5 s." in text
    assert "checkable" not in text
    assert "hole" not in text
    assert "reward" not in text
    assert "No rollout was right" not in text


def test_the_report_says_so_where_no_rollout_was_right() -> None:
    nothing = scores(dict.fromkeys(TESTED, 0.0), 8, 256)
    seconds = dict.fromkeys(("rollout", "scoring", "update"), 1.0)
    iteration = {"em": 0.0, "kept_fraction": 0.0, "effective_sample_size": 0.0, "seconds": seconds}
    screen = io.StringIO()
    print_report(summarise(nothing, nothing, [iteration] * 2, "max_epochs", 3), 1.0, Console(file=screen, width=200))
    text = " ".join(screen.getvalue().split())
    assert "No rollout was right, so there was nothing to learn from: warm-start longer (--sft.steps)" in text


def test_what_the_verifier_believes_and_what_it_lets_by_stand_beside_the_truth() -> None:
    gamed = scores({**TESTED, "test/hacked": 0.75, "test/reward": 0.875}, 8, 256)
    screen = io.StringIO()
    print_scores({"": gamed}, Console(file=screen, width=200))
    lines = [" ".join(line.replace("│", " ").split()) for line in screen.getvalue().splitlines()]
    assert "reward: what the verifier believes 0.875" in lines
    assert "EM 0.100" in lines
    assert "wrong, through the verifier's hole 0.750" in lines


WELL = {"em": 0.5, "reward": 0.4, "unfinished": 0.1, "kept_fraction": 0.6, "gold_loss": 1.0}


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        ({}, {}, None),
        ({"reward": 0.0}, {"reward": 0.0}, "Every reward was 0"),
        ({}, {"unfinished": 0.6}, "60% of the responses did not end"),
        ({"unfinished": 0.9}, {}, None),  # that was at the beginning
        ({"kept_fraction": 1.0}, {"kept_fraction": 1.0}, "The filter dropped nothing"),
        (
            {"kept_fraction": 1.0, "gold_loss": None},
            {"kept_fraction": 1.0, "gold_loss": None},
            None,
        ),  # there is none
        ({}, {"gold_loss": 1.2}, "rose from 1 to 1.2"),
        ({"em": 0.0}, {"em": None}, "No rollout was right"),
    ],
)
def test_what_is_below_expectation_is_said(first: dict[str, Any], last: dict[str, Any], said: str | None) -> None:
    found = findings([{**WELL, **first}, {**WELL, **last}])
    assert len(found) == (said is not None)
    assert said is None or said in str(found[0])


def test_answers_are_shown_with_what_they_earn_and_score_in_eighty_columns(tmp_path: Path) -> None:
    rows = [
        {"response": f"so {n}", "reward": float(n), "score": score, "kept": n > 1}
        for n, score in enumerate((0.5, -2.0, None, 3.0))
    ]
    write_parquet({name: [row[name] for row in rows] for name in rows[0]}, tmp_path / "iteration-00001-rank-00.parquet")
    asked = {"prompt": "1 + 1?\n", "correct": False, "finished": True, "reward": 0.0, "response": "x" * 100 + "\x1b[2J"}
    screen = io.StringIO()
    console = Console(file=screen, width=80)
    print_answers([asked], [{**asked, "correct": True, "reward": 1.0, "response": "#### [2]"}], console)
    print_extremes(tmp_path, console)
    text = screen.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    flat = " ".join(text.split())
    assert "Problem 1: 1 + 1?" in flat
    assert "before, wrong, reward 0:" in flat
    assert "after, right, reward 1: #### [2]" in flat
    assert "Highest score 3, reward 3, kept: so 3 Lowest score -2, reward 1, dropped: so 1" in flat


def test_what_could_not_be_checked_is_shown_and_never_passes_for_faithful() -> None:
    some = scores({**TESTED, "test/unverifiable": 0.25}, 8, 256)
    unknown = {name: share for name, share in TESTED.items() if name != "test/false_positive"}
    none = scores({**unknown, "test/unverifiable": 1.0}, 8, 256)
    assert none["false_positive"] is None
    screen = io.StringIO()
    print_scores({"some": some, "none": none}, Console(file=screen, width=200))
    lines = [" ".join(line.replace("│", " ").split()) for line in screen.getvalue().splitlines()]
    assert "right by unfaithful reasoning, of the checkable 0.400 –" in lines
    assert "right, reasoning not checkable 0.250 1.000" in lines
