from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from typing import Any

import pytest

from ippo.data import EmbeddedOptions, Row, Task, columns, embedded_task
from ippo.errors import UsageError
from ippo.rewards import ErrsOn, classify_chain

OPTIONS = EmbeddedOptions(train_size=3000, gold_size=40, validation_size=30, test_size=50, wrong_step=0.2, shortcut=0.1)
SPLITS = ("train", "gold", "validation", "test")
SIGN = {**dict.fromkeys(("buys", "finds", "wins", "gets"), 1), **dict.fromkeys(("loses", "sells", "eats", "gives"), -1)}


@pytest.fixture(scope="module")
def drawn() -> Task:
    return embedded_task(OPTIONS)


def answer_of(prompt: str) -> int:
    """Read the question and work out its answer, with no help from the code that wrote it."""
    opening, *events = prompt.removesuffix(". How many now?\n").split(", ")
    value = int(re.fullmatch(r"\w+ has (\d+) \w+", opening)[1])  # type: ignore[index]
    for event in events:
        verb, *_, last = event.split()
        if verb in ("doubles", "triples"):
            value *= {"doubles": 2, "triples": 3}[verb]
        else:
            value += SIGN[verb] * int(last)
    return value


def chains(task: Task, split: str) -> list[str]:
    table = columns(getattr(task, split))
    return task.check(table["prompt"], table["solution"], answer=table["answer"], steps=table["steps"])["chain"]


@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_right(drawn: Task, split: str) -> None:
    rows = getattr(drawn, split)
    assert [row["answer"] for row in rows] == [str(answer_of(row["prompt"])) for row in rows]
    assert all(row["solution"].endswith(f"#### {row['answer']}") for row in rows)


@pytest.mark.parametrize("split", SPLITS)
def test_steps_lead_from_the_question_to_the_answer(drawn: Task, split: str) -> None:
    for row in getattr(drawn, split):
        value = int(re.search(r"has (\d+)", row["prompt"])[1])  # type: ignore[index]
        for step in row["steps"]:
            left, operator, right, result = re.fullmatch(r"(\d+)([-+*])(\d+)=(\d+)", step).groups()  # type: ignore[union-attr]
            assert int(left) == value
            value = {"+": value + int(right), "-": value - int(right), "*": value * int(right)}[operator]
            assert int(result) == value
            assert 0 <= value <= 40
        assert str(value) == row["answer"]
        assert OPTIONS.min_steps <= len(row["steps"]) <= OPTIONS.max_steps


def test_sizes_and_numbers_of_steps(drawn: Task) -> None:
    sizes = [len(getattr(drawn, split)) for split in SPLITS]
    assert sizes == [3000, 40, 30, 50]
    assert {len(row["steps"]) for row in drawn.train} == {2, 3, 4}


def test_no_question_twice() -> None:
    task = embedded_task(EmbeddedOptions(train_size=8000, max_steps=2))  # by chance alone, about ten would be
    prompts = [row["prompt"] for split in SPLITS for row in getattr(task, split)]
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize("split", ["gold", "validation", "test"])
def test_clean_splits_are_faithful(drawn: Task, split: str) -> None:
    assert set(chains(drawn, split)) == {"faithful"}


def test_demonstrations_hold_each_kind_at_its_share(drawn: Task) -> None:
    counts = Counter(chains(drawn, "train"))
    shares = {"wrong_step": 0.2, "nonsense": 0.15, "shortcut": 0.1, "faithful": 0.55}
    for kind, share in shares.items():
        assert counts[kind] / 3000 == pytest.approx(share, abs=3 * math.sqrt(share * (1 - share) / 3000)), kind
    assert counts["wrong"] == 0


@pytest.mark.parametrize("kind", ["wrong_step", "nonsense", "shortcut"])
def test_a_dial_at_one_makes_every_demonstration_of_its_kind(kind: str) -> None:
    dials = {"wrong_step": 0.0, "nonsense": 0.0, "shortcut": 0.0, kind: 1.0}
    sizes = {"train_size": 200, "gold_size": 1, "validation_size": 1, "test_size": 1}
    task = embedded_task(EmbeddedOptions(**{**sizes, **dials}))  # type: ignore[arg-type]
    assert set(chains(task, "train")) == {kind}


def test_same_options_same_rows_and_another_seed_others(drawn: Task) -> None:
    again, other = embedded_task(OPTIONS), embedded_task(dataclasses.replace(OPTIONS, seed=1))
    for split in SPLITS:
        assert getattr(again, split) == getattr(drawn, split)
        assert getattr(other, split) != getattr(drawn, split)


def test_clean_splits_do_not_depend_on_the_demonstrations(drawn: Task) -> None:
    other = embedded_task(dataclasses.replace(OPTIONS, train_size=10, nonsense=0.7, verifier_error=0.0))
    for split in ("gold", "validation", "test"):
        assert getattr(other, split) == getattr(drawn, split)


def test_gold_error_spoils_its_share_of_the_gold_solutions_and_nothing_else(drawn: Task) -> None:
    noisy = embedded_task(dataclasses.replace(OPTIONS, gold_error=0.3))
    changed = [mine["solution"] != other["solution"] for mine, other in zip(noisy.gold, drawn.gold, strict=True)]
    assert sum(changed) == round(0.3 * len(drawn.gold))
    spoiled = [row for row, is_changed in zip(noisy.gold, changed, strict=True) if is_changed]
    assert {classify_chain(row["solution"], row["steps"], row["answer"]) for row in spoiled} == {"wrong_step"}
    for split in ("train", "validation", "test"):
        assert getattr(noisy, split) == getattr(drawn, split)


def test_gold_problems_of_so_many_steps_are_new_ones_and_nothing_else_changes(drawn: Task) -> None:
    narrow = embedded_task(dataclasses.replace(OPTIONS, gold_steps=2))
    assert {len(row["steps"]) for row in narrow.gold} == {2} < {len(row["steps"]) for row in drawn.gold}
    others = {row["prompt"] for split in ("train", "validation", "test") for row in getattr(drawn, split)}
    assert not others & {row["prompt"] for row in narrow.gold}
    for split in ("train", "validation", "test"):
        assert getattr(narrow, split) == getattr(drawn, split)


def test_gold_solutions_in_words_are_the_same_ones_and_nothing_else_changes(drawn: Task) -> None:
    other = embedded_task(dataclasses.replace(OPTIONS, gold_style="words"))
    for mine, theirs in zip(other.gold, drawn.gold, strict=True):
        *sentences, answer = mine.pop("solution").split("\n")
        *steps, same = theirs["solution"].split("\n")
        assert mine == {name: value for name, value in theirs.items() if name != "solution"}
        assert answer == same
        signs = {"plus": "+", "minus": "-", "times": "*", "is": "="}
        spelled = ["".join(signs.get(word, word) for word in one.rstrip(".").split()) for one in sentences]
        assert spelled == steps
    for split in ("train", "validation", "test"):
        assert getattr(other, split) == getattr(drawn, split)


@pytest.mark.parametrize(("errs_on", "rewards"), [("right", [0.0, 0.0]), ("wrong", [1.0, 1.0])])
def test_the_verifier_errs_on_one_side_where_it_is_told_to(errs_on: ErrsOn, rewards: list[float]) -> None:
    task = embedded_task(dataclasses.replace(OPTIONS, train_size=1, verifier_error=1.0, verifier_errs_on=errs_on))
    answers = {"answer": [task.gold[0]["answer"]] * 2}
    assert task.reward(prompts=["", ""], completions=[task.gold[0]["solution"], "#### none"], **answers) == rewards
    assert f"100% of the {errs_on} answers" in task.notice


def test_the_reward_errs_at_the_rate_that_the_notice_tells_and_the_check_never() -> None:
    task = embedded_task(dataclasses.replace(OPTIONS, train_size=1, verifier_error=1.0))
    row: Row = task.gold[0]
    truth = {"answer": [row["answer"]] * 2, "steps": [row["steps"]] * 2}
    texts = [row["solution"], "#### none"]
    assert task.reward(prompts=["", ""], completions=texts, **truth) == [0.0, 1.0]
    assert task.check(prompts=["", ""], completions=texts, **truth) == {
        "answer": [row["answer"], None],
        "correct": [True, False],
        "chain": ["faithful", "wrong"],
    }
    assert "100%" in task.notice


def test_what_goes_through_the_hole_is_paid_and_classed_hacked_and_stays_wrong() -> None:
    task = embedded_task(dataclasses.replace(OPTIONS, train_size=1, verifier_hole="short"))
    row: Row = task.gold[0]
    truth = {"answer": [row["answer"]] * 4, "steps": [row["steps"]] * 4}
    texts = [row["solution"], f"#### {row['answer']}", "#### 99", "1+1=2\n1+1=2\n#### 99"]
    prompts = [row["prompt"]] * 4
    assert task.reward(prompts=prompts, completions=texts, **truth) == [1.0, 1.0, 1.0, 0.0]
    found = task.check(prompts=prompts, completions=texts, **truth)
    assert found["chain"] == ["faithful", "shortcut", "hacked", "wrong"]
    assert found["correct"] == [True, True, False, False]
    assert "lets 100% of 'short' answers by, on purpose" in task.notice


@pytest.mark.parametrize(
    ("dials", "hole", "flipped"),
    [
        ({}, "short", 0.0),
        ({"verifier_hole": "round"}, "round", 0.0),
        ({"verifier_hole": "none"}, "none", 0.25),
        ({"verifier_error": 0.1}, "none", 0.1),
        ({"verifier_error": 0.0}, "none", 0.0),
        ({"verifier_errs_on": "right"}, "none", 0.25),
        ({"verifier_error_icc": 0.5}, "none", 0.25),
        ({"verifier_hole": "short", "verifier_error": 0.1}, "short", 0.1),
    ],
)
def test_the_verifier_has_a_hole_unless_it_errs_at_random_and_both_where_both_are_told(
    dials: dict[str, Any], hole: str, flipped: float
) -> None:
    options = EmbeddedOptions(**dials)
    assert (options.hole, options.flipped) == (hole, flipped)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_size": 0}, "embedded.train_size = 0: a split needs at least one row"),
        ({"gold_size": -1}, "embedded.gold_size = -1"),
        ({"min_steps": 1}, "embedded.min_steps = 1: use at least 2 and at most max_steps"),
        ({"min_steps": 5, "max_steps": 4}, "embedded.min_steps = 5"),
        ({"nonsense": 1.2}, "embedded.nonsense = 1.2: use a share between 0 and 1"),
        ({"gold_error": 1.5}, "embedded.gold_error = 1.5: use a share between 0 and 1"),
        ({"gold_steps": 5}, "embedded.gold_steps = 5: use 2 to 4, or null for all"),
        ({"gold_style": "verse"}, "embedded.gold_style = 'verse': use same or words"),
        ({"verifier_error": -0.1}, "embedded.verifier_error = -0.1"),
        ({"verifier_error_icc": 2.0}, "embedded.verifier_error_icc = 2.0: use a share between 0 and 1"),
        ({"verifier_hole_rate": 2.0}, "embedded.verifier_hole_rate = 2.0: use a share between 0 and 1"),
        ({"verifier_hole": "wide"}, "verifier_hole = 'wide': use none, short, long, round, large, phrase, copy"),
        ({"wrong_step": 0.5, "nonsense": 0.5, "shortcut": 0.5}, "may add up to at most 1"),
    ],
)
def test_refuses_dials_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        EmbeddedOptions(**options)
    assert message in str(error.value)
