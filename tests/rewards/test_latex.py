from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from ippo.rewards import LATEX, MEASURES, latex_equal

HANGS = "9^{9^{9}}"  # 370 million digits, worked out in one go that no signal interrupts


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        (r"\frac{1}{2}", "0.5", True),
        (r"$-3 \sqrt{2}$", r"-\sqrt{18}", True),
        ("x^2+2x+1", "(x+1)^2", True),
        ("1,250", "1250", True),
        ("(1,2)", "(2,1)", False),
        ("[1,2)", "[1, 2)", True),
        (r"\text{Evelyn}", "Evelyn", True),
        ("3", "4", False),
        ("-3", "3", False),
        ("5", "$", None),
        ("5", "many", False),
        ("5", "1+" * 300 + "1", None),  # longer than any answer
    ],
)
def test_answers_are_compared_by_their_meaning(gold: str, answer: str, expected: bool | None) -> None:
    assert latex_equal(gold, answer) is expected


def test_numbers_within_the_tolerance() -> None:
    assert latex_equal("3.01", "3.02") is False
    assert latex_equal("3.01", "3.02", 0.02) is True
    assert latex_equal("3.01", "x", 0.02) is False


def hang(limit: float = 1.0) -> tuple[bool | None, bool | None, float]:
    """A comparison that hangs, the one after it, and the seconds that the first one took."""
    latex_equal("1+1", "2")  # the worker is up
    start = time.perf_counter()
    given_up = latex_equal("7", HANGS, limit=limit)
    seconds = time.perf_counter() - start
    return given_up, latex_equal("7", "3+4"), seconds


def in_thread(work: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join(60)
    return found[0]


def in_fork(work: Callable[[], Any]) -> Any:
    """In a daemonic process, as data loaders have them: it may have no children of multiprocessing's kind."""
    context = multiprocessing.get_context("fork")
    queue: Any = context.Queue()
    process = context.Process(target=lambda: queue.put(work()), daemon=True)
    process.start()
    found = queue.get(timeout=60)
    process.join()
    return found


@pytest.mark.parametrize("run", [lambda work: work(), in_thread, in_fork], ids=["here", "thread", "worker process"])
def test_a_hanging_answer_costs_the_limit_and_is_unverifiable(run: Callable[[Any], Any]) -> None:
    given_up, after, seconds = run(hang)
    assert given_up is None
    assert after is True
    assert seconds < 4  # the limit of one second, and room for a busy machine


def test_threads_do_not_mix_up_their_answers() -> None:
    found: dict[int, bool | None] = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: latex_equal("7", f"{n}+0")}))  # type: ignore[misc]
        for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {n: n == 7 for n in range(12)}


def test_reward_and_check_of_a_format() -> None:
    texts = [r"\boxed{0.5}", r"\boxed{0.6}", "0.5", r"\boxed{$}"]
    columns: dict[str, Any] = {"prompts": [""] * 4, "completions": texts, "answer": [r"\frac{1}{2}"] * 4}
    assert LATEX.reward(**columns) == [1.0, 0.0, 0.0, 0.0]
    assert LATEX.check(**columns) == {
        "answer": ["0.5", "0.6", None, "$"],
        "correct": [True, False, False, False],
        "chain": ["unverifiable", "wrong", "wrong", "unverifiable"],
    }
    assert MEASURES.reward(**columns, tolerance=[0.2] * 4) == [1.0, 1.0, 0.0, 0.0]
    assert LATEX.equal("x+1", "1+x")
    assert not LATEX.equal("x", "$")
