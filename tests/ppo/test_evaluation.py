"""One verdict an answer: every figure reads it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ippo.data import Columns, EmbeddedOptions, embedded_task
from ippo.ppo.evaluation import Evaluation
from ippo.rewards import CHOICES, LATEX, MEASURES, NUMBERS, AnswerFormat, Judge, Verdicts

EMBEDDED = embedded_task(
    EmbeddedOptions(train_size=1, gold_size=1, validation_size=1, test_size=1, verifier_error=0.25)
)

# Of each task's check: the gold answer's columns, and responses of which some are right.
TASKS: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "embedded": (EMBEDDED, {"answer": "9", "steps": ["4+5=9"]}, ["4+5=9\n#### 9", "#### 9.0", "#### 8", "9"]),
    "numbers": (NUMBERS, {"answer": "2.5"}, ["#### 2.5", "#### 5/2", "#### 5", "so 2.5"]),
    "latex": (LATEX, {"answer": r"\frac{1}{2}"}, [r"\boxed{0.5}", r"\boxed{\frac12}", r"\boxed{2}", "?"]),
    "an inequality for an interval": (LATEX, {"answer": r"x\le 2"}, [r"\boxed{(-\infty,2]}"]),
    "an interval for an inequality": (LATEX, {"answer": r"(-\infty,2]"}, [r"\boxed{x\le 2}"]),
    "measures": (MEASURES, {"answer": "3.0", "tolerance": 0.1}, [r"\boxed{3.02}", r"\boxed{3.1}", r"\boxed{3.3}"]),
    "choices": (
        CHOICES,
        {"answer": "B", "options": ["a bed", "a car", "a door"]},
        ["#### B", "#### (B) a car", "#### A", "a car"],
    ),
}


def judged(task: Any, row: dict[str, Any], texts: list[str], finished: bool = True) -> tuple[Verdicts, Columns]:
    """Verdicts on texts that all answer one row, and that row's columns."""
    columns: Columns = {"prompt": ["p"], **{name: [value] for name, value in row.items()}}
    repeated = {name: values * len(texts) for name, values in columns.items() if name != "prompt"}
    return Judge(task.check)([finished] * len(texts), ["p"] * len(texts), texts, **repeated), columns


def figures(verdicts: Verdicts, columns: Columns, equal: Callable[..., bool]) -> dict[str, float]:
    evaluation = Evaluation(len(verdicts.right), equal)
    evaluation.update(verdicts, columns)
    evaluation.update_greedy(
        Verdicts(*([getattr(verdicts, name)[0]] for name in ("answers", "right", "finished", "chains")))
    )
    found = {name: metric.compute().item() for name, metric in evaluation.metrics.items()}
    return {name: share for name, share in found.items() if not math.isnan(share)}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(("task", "row", "texts"), TASKS.values(), ids=TASKS)
def test_eight_equal_answers_have_one_figure(task: Any, row: dict[str, Any], texts: list[str], finished: bool) -> None:
    for text in texts:
        verdicts, columns = judged(task, row, [text] * 8, finished)
        found = figures(verdicts, columns, task.equal)
        assert found["em"] == found["em_greedy"] == found["mv"] == found["pass@k"] == float(verdicts.correct[0])
        assert found["unfinished"] == float(not finished)


@pytest.mark.parametrize("name", ["embedded", "numbers", "latex", "measures", "choices"])
def test_answers_that_are_written_in_several_ways_vote_as_one(name: str) -> None:
    task, row, texts = TASKS[name]
    verdicts, columns = judged(task, row, [texts[0], texts[2], texts[1]])
    assert verdicts.correct == [True, False, True]
    assert figures(verdicts, columns, task.equal)["mv"] == 1.0


def test_a_row_without_a_tolerance_keeps_votes_apart_that_another_row_counts_together() -> None:
    texts = [rf"\boxed{{{number}}}" for number in ("3.0", "5", "5", "3.05", "3.05")]
    for tolerance, expected in ((0.1, 1.0), (0.0, 0.0)):
        verdicts, columns = judged(MEASURES, {"answer": "3.0", "tolerance": tolerance}, texts)
        assert figures(verdicts, columns, MEASURES.equal)["mv"] == expected


def test_what_is_unfinished_is_wrong_in_every_figure_and_does_not_vote() -> None:
    texts = ["#### 12", "#### 12", "#### 12", "#### 1250"]
    verdicts = Judge(NUMBERS.check)([False, False, False, True], ["p"] * 4, texts, answer=["1250"] * 4)
    assert figures(verdicts, {"answer": ["1250"]}, NUMBERS.equal) == {
        "em": 0.25,
        "em_greedy": 0.0,
        "mv": 1.0,
        "pass@k": 1.0,
        "unverifiable": 1.0,  # and so there is no share of unfaithful ones
        "hacked": 0.0,
        "unfinished": 0.75,
    }


def test_what_the_verifier_believes_stands_beside_the_truth() -> None:
    task = embedded_task(
        EmbeddedOptions(train_size=1, gold_size=1, validation_size=1, test_size=1, verifier_hole="short")
    )
    row = {"answer": "9", "steps": ["4+2=6", "6+3=9"]}
    texts = ["4+2=6\n6+3=9\n#### 9", "#### 9", "#### 3", "4+2=6\n6+3=8\n#### 8"]
    verdicts, columns = judged(task, row, texts)
    evaluation = Evaluation(4, task.equal, reward=True)
    evaluation.update(verdicts, columns)
    evaluation.update_reward(torch.tensor([1.0, 1.0, 1.0, torch.nan]))  # where no reward applies, none counts
    found = {name: metric.compute().item() for name, metric in evaluation.metrics.items() if name != "em_greedy"}
    assert (found["em"], found["hacked"], found["reward"]) == (0.5, 0.25, 1.0)
    assert "reward" not in Evaluation(4, task.equal).metrics


def any_columns(answer: str, other: str, **columns: Any) -> bool:
    assert columns == {"source": "somewhere", "prompt": "p"}  # ``answer`` is the name of its first argument
    return answer == other


@pytest.mark.parametrize(
    "equal", [operator.eq, lambda a, b: a == b, lambda a, b, answer: answer == "4", any_columns, NUMBERS.equal]
)
def test_an_equality_gets_the_columns_that_it_takes(equal: Callable[..., bool]) -> None:
    verdicts, columns = judged(NUMBERS, {"answer": "4", "source": "somewhere"}, ["#### 4", "#### 4"])
    assert figures(verdicts, columns, equal)["mv"] == 1.0


def test_a_rollouts_check_and_reward_compare_each_answer_once() -> None:
    compared = []

    def compare(gold: str, answer: str) -> bool | None:
        compared.append(answer)
        return None if len(compared) > 2 else gold == answer  # as if from then on the time were up

    form = AnswerFormat(lambda text: text, compare)
    truth = form.check(prompts=["p"] * 2, completions=["1", "2"], answer=["1", "1"])
    assert form.reward(prompts=["p"] * 2, completions=["1", "2"], answer=["1", "1"]) == [1.0, 0.0]
    assert truth["correct"] == [True, False]
    assert compared == ["1", "2"]
    assert form.reward(prompts=["p"] * 2, completions=["1", "2"], answer=["2", "2"]) == [0.0, 0.0]  # another question
    assert len(compared) == 4
    assert form.check(prompts=["p"] * 3, completions=["3"] * 3, answer=["3"] * 3)["correct"] == [False] * 3
    assert len(compared) == 5
