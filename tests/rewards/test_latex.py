from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from stopwatch import cpu_seconds

from ippo.rewards import LATEX, MEASURES, latex_equal

HANGS = "9^{9^{9}}x"  # 370 million digits, worked out in one go that no signal interrupts


EQUAL = [
    (r"\frac{1}{2}", "0.5"),
    (r"$-3 \sqrt{2}$", r"-\sqrt{18}"),
    (r"8\sqrt3", r"8\sqrt{3}"),
    (r"\frac{\sqrt{3}}{2}", r"\frac12\sqrt3"),
    (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5+2\sqrt6}"),
    (r"2^{2004}", r"4^{1002}"),
    (r"\cos 60^\circ", "0.5"),
    (r"\log_2 8", "3"),
    (r"\frac{3}{4}x^2", "0.75x^2"),
    ("x^2+2x+1", "(x+1)^2"),
    ("1,250", "1250"),
    (r"111, \! 111, \! 111", "111111111"),
    (r"10{,}000", r"10\,000"),
    (r"\dfrac{1}{2}.", r"$\tfrac12$"),
    ("5.", r"\(5\)"),
    (r"2\frac{1}{2}", r"\frac{5}{2}"),
    (r"1.6\times 10^{-19}", r"16\cdot10^{-20}"),
    (r"7.2\%", "7.2"),
    (r"50\%", r"\frac12"),
    (r"50\%", "50 percent"),
    (r"\$5.00", r"5 \text{ dollars}"),
    (r"90^\circ", "90"),
    (r"8\sqrt3 \text{ square inches}", r"8\sqrt{3}"),
    (r"5 \text{ in}^2", r"5\text{ square inches}"),
    (r"5 \mathrm{~cm}", r"5 \text{ centimeters}"),
    ("5 cm", "5"),
    ("5inches", r"5 \text{ in.}"),
    ("$x=2$ or $x=3$", "3, 2"),
    ("3 : 2", "3:2"),
    (r"\text{Evelyn}", "Evelyn"),
    (r"\text{June 20}", "June 20"),
    (r"\text{C,E}", "C, E"),
    (r"\textbf{(B)}", "B"),
    (r"\text{13}", "13"),
    ("x = 5", "5"),
    ("5 = x", "x=5"),
    ("x = 1,250", "1250"),
    ("1, x = 2", "2, 1"),
    ("2", "5 - 3 = 2"),
    ("y = 2x+1", "1 + 2x"),
    (r"f(2) = 5", "5"),
    ("(x, y) = (1, 2)", "(1,2)"),
    ("3x-y=2", "y=3x-2"),
    ("1, 2", "2,1"),
    (r"1 \text{ and } 2", r"\{2, 1\}"),
    ("x=1 or x=2", "2, 1"),
    (r"3 \pm \sqrt{2}", r"3-\sqrt2, 3+\sqrt2"),
    (r"\{5\}", "5"),
    ("1,000, 2,000", "2000, 1000"),
    ("[1,2)", "[1, 2)"),
    (r"\left(1, \frac12\right)", "(1, 0.5)"),
    (r"(0,1)\cup(2,3)", r"(2,3) \cup (0,1)"),
    (r"(-\infty, 2]", r"x \le 2"),
    (r"1 < x \leq 4", "(1,4]"),
    (r"x \in [1,2]", "[1,2]"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix} 1.0 \\ 2 \end{bmatrix}"),
    ("204_5", "204_{5}"),
    ("√2", r"\sqrt 2"),
]
UNEQUAL = [
    ("3", "4"),
    ("-3", "3"),
    (r"1.6\times 10^{-19}", r"3.2\times 10^{-19}"),
    (r"\frac{1}{2004!}", r"-\frac{1}{2004!}"),
    (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
    (r"\frac13", "0.333333"),
    (r"\pi", "3.14159"),
    ("204_5", "204_6"),
    ("204_5", "204"),
    (r"\pm 2021", "2021"),
    ("12", "12 or 15"),
    ("12", "12, 15"),
    ("1250", "1, 250"),
    ("5", "2x+3=5"),
    ("x+y=5", "5"),
    ("5", "3=5"),
    ("R^2-r^2", "0"),
    ("2t", "2"),
    ("2g", "2"),
    ("3 mg", "3"),
    ("4km", "4"),
    ("5x", "5"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", r"\{1,2\}"),
    ("(1,2)", "[1,2)"),
    ("[0,1)", "[0,1]"),
    ("x>2", r"x\ge 2"),
    (r"\text{even}", "neve"),
    ("5", "many"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}"),
    (r"\{1,2,2\}", r"\{1,1,2\}"),
]
UNTOLD = [
    ("5", "$"),
    ("5", ""),
    ("30", "5 6"),
    ("1:10", "3:30"),
    (r"5 \text{ cm}", r"5 \text{ km}"),
    ("4", r"4\sqrt("),
    ("5", r"5 \approx 6"),
    ("5", "1+" * 300 + "1"),  # longer than any answer
    (",".join("abcdefgh" * 5), ",".join("bcdefgha" * 5)),  # longer than any list
]


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [(*pair, verdict) for pairs, verdict in ((EQUAL, True), (UNEQUAL, False), (UNTOLD, None)) for pair in pairs],
)
def test_answers_are_compared_by_their_meaning_and_both_ways_alike(
    gold: str, answer: str, expected: bool | None
) -> None:
    assert latex_equal(gold, answer) is expected
    assert latex_equal(answer, gold) is expected


@pytest.mark.parametrize(
    ("gold", "near", "far"),
    [
        ("3.0", "3.1", "3.11"),  # the boundary itself is near
        ("x = 3.0", "3.1", "3.2"),
        ("3.0", "x=2.9", "x=2.8"),
        ("1, 2", "2.1, 0.9", "2.1, 0.8"),
        ("(1, 2)", "(1.1, 2)", "(1.2, 2)"),
        ("[0,1]", "[0.1,1]", "(0.1,1)"),
        ("3.1, 3.0", "3.1, 3.2", "3.2, 3.3"),  # each has a partner, though not the first one
        (r"8\sqrt3", "13.8", "13.7"),
        (
            r"\begin{pmatrix}1\\2\end{pmatrix}",
            r"\begin{pmatrix}1.1\\2\end{pmatrix}",
            r"\begin{pmatrix}1.2\\2\end{pmatrix}",
        ),
        (r"3.0 \text{ m}", r"3.1", r"4 \text{ m}"),
        (r"50\%", "0.501", "0.502"),  # as exact as the gold answer is written
        ("0.5", r"60\%", r"61\%"),
    ],
)
def test_numbers_within_the_tolerance(gold: str, near: str, far: str) -> None:
    assert latex_equal(gold, near, 0.1) is True
    assert latex_equal(gold, near) is False
    assert latex_equal(gold, far, 0.1) is False


def test_an_expression_without_a_value_is_not_near() -> None:
    assert latex_equal("3.01", "x", 0.02) is False


def test_an_answer_of_very_many_parts_is_given_up() -> None:
    nested = ",".join([r"\{" + ",".join(str(n) for n in range(7)) + r"\}"] * 25)
    found: list[bool | None] = []
    assert cpu_seconds(lambda: found.append(latex_equal(nested, nested.replace("0", "9"))), tries=1) < 2
    assert found == [None]


def hang(limit: float = 0.3) -> tuple[bool | None, bool | None, float]:
    """A comparison that hangs, the one after it, and the seconds that the first one took."""
    latex_equal("1+1", "2")  # the worker is up
    start = time.perf_counter()
    given_up = latex_equal("7x", HANGS, limit=limit)
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
    assert seconds < 8  # on the clock ten times the limit at most, and room for a busy machine


def test_running_out_of_time_is_not_remembered() -> None:
    assert latex_equal("x+3", "3+x+0", limit=0.0) is None
    assert latex_equal("x+3", "3+x+0") is True


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
