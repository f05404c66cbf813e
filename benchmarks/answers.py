"""Are answers read and compared right? Against readings that are known beforehand, and against ``math_verify`` alone.

    python benchmarks/answers.py                              # writes docs/results/answers.md
    python benchmarks/answers.py --numbers 2000 --golds 2 --output /tmp/answers.md

It takes the package of GSM-Symbolic: ``pip install -c constraints.txt -e ".[gsm-symbolic]"``.

What is right is known by how each text was made, never by the reader that is examined. Exits with 1 if a number is read
as another one, or an answer that differs is judged equal.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from math_golds import REWRITES, golds
from number_texts import TAILS, WRAPPINGS, random_number, spellings

from ippo.data.gsm8k import to_row as gsm8k_row
from ippo.rewards import boxed_answer, final_answer, is_correct, latex_equal, same_number

PAGE = Path(__file__).parents[1] / "docs" / "results" / "answers.md"


class Miss(NamedTuple):
    """One judgement that is not what it should be."""

    kind: str
    gold: str
    answer: str
    judged: Any


def read_numbers(count: int, seed: int) -> tuple[int, list[Miss]]:
    """Every spelling of ``count`` numbers, each in a wrapping: texts, and those not read as the number they are."""
    rng, texts, misses = random.Random(f"numbers {seed}"), 0, []
    for _ in range(count):
        value, digits = random_number(rng)
        for name, written in spellings(value, digits).items():
            text = "so\n#### " + rng.choice(WRAPPINGS).format(written)
            texts += 1
            near = value + Fraction(1, 1000)
            if final_answer(text) != str(value) or not is_correct(text, str(value)) or same_number(str(near), written):
                misses.append(Miss(name, str(value), text, final_answer(text)))
    return texts, misses


def read_tails(count: int, seed: int) -> list[Miss]:
    """Numbers that go on, or may: each must be unreadable."""
    rng, misses = random.Random(f"tails {seed}"), []
    for _ in range(count):
        value, digits = random_number(rng)
        written = rng.choice([text for text in spellings(value, digits).values() if text[-1].isdigit()])
        tail = rng.choice(TAILS)
        text = f"#### {written}{tail.format(rng.randint(1, 99))}"
        if tail in (" 12", " 1 2") and "/" in written:
            continue
        if final_answer(text) is not None:
            misses.append(Miss(tail, written, text, final_answer(text)))
    return misses


def read_golds(size: int) -> dict[str, tuple[int, list[Miss]]]:
    """GSM-Symbolic's solutions, and the same in GSM8K's schema and its way to write thousands."""
    from reasoning_gym import create_dataset

    found: dict[str, tuple[int, list[Miss]]] = {"GSM-Symbolic": (0, []), "GSM8K's schema": (0, [])}
    for item in create_dataset("gsm_symbolic", size=size, seed=0):
        solution = item["metadata"]["answer_cot"]
        value = Fraction(item["answer"].replace(",", ""))
        before, _, tail = solution.rpartition("####")
        grouped = f"{before}#### {int(value):,}" if value.denominator == 1 else f"{before}#### {float(value)}"
        for source, text in (("GSM-Symbolic", solution), ("GSM8K's schema", grouped)):
            row = gsm8k_row({"question": item["question"], "answer": text})
            near = (value + 1, value * 10 + 3, -value - 1, value + Fraction(1, 2))
            fine = row is not None and Fraction(row["answer"]) == value and is_correct(text, row["answer"])
            fine = fine and not any(is_correct(f"#### {other}", str(value)) for other in near)
            count, misses = found[source]
            if not fine:
                misses.append(Miss(source, str(value), tail, row and row["answer"]))
            found[source] = (count + 1, misses)
    return found


def math_verify_alone(gold: str, response: str) -> bool:
    """What ``math_verify`` says of a whole response with its own reading and settings."""
    from math_verify import parse, verify

    return bool(verify(parse(f"${gold}$"), parse(response)))


def judge_math(draws: int, seed: int) -> dict[str, Any]:
    """Golds rewritten and perturbed, through the box to the verdict; and ``math_verify`` alone on the same."""
    rewritten: Counter[str] = Counter()
    missed, let_by, untold, theirs = [], [], [], []
    perturbed, compared = 0, 0
    for place, gold in enumerate(golds(draws, seed)):
        cases = [(name, text, True) for name, rewrite in REWRITES.items() if (text := rewrite(gold)) is not None]
        cases += [("perturbed", other, False) for other in gold.others]
        for number, (name, text, equal) in enumerate(cases):
            response = rf"So it is $\boxed{{{text}}}$."
            answer = boxed_answer(response)
            verdict = None if answer is None else latex_equal(gold.text, answer, limit=20.0)
            rewritten[name] += 1
            perturbed += not equal
            if equal and verdict is not True:
                missed.append(Miss(f"{gold.kind}, {name}", gold.text, text, verdict))
            elif not equal and verdict is True:
                let_by.append(Miss(gold.kind, gold.text, text, verdict))
            elif not equal and verdict is None:
                untold.append(Miss(gold.kind, gold.text, text, verdict))
            if number % 3 == place % 3:  # of every third, what math_verify says
                compared += 1
                said = math_verify_alone(gold.text, response)
                if said is not equal:
                    theirs.append(Miss(f"{gold.kind}, {name}", gold.text, text, said))
    return {
        "rewritten": rewritten,
        "missed": missed,
        "let by": let_by,
        "untold": untold,
        "compared": compared,
        "theirs": theirs,
        "perturbed": perturbed,
    }


def _listed(misses: Sequence[Miss], right: str) -> Iterator[str]:
    """A line a kind, with its first example."""
    first: dict[str, Miss] = {}
    counts = Counter(miss.kind for miss in misses)
    for miss in misses:
        first.setdefault(miss.kind, miss)
    if misses:
        yield "| kind | cases | gold | answer | judged | right is |\n|---|---|---|---|---|---|"
    for kind, count in sorted(counts.items()):
        miss = first[kind]
        gold, answer = (text.replace("|", r"\|").replace("\n", " ") for text in (miss.gold, miss.answer))
        yield f"| {kind} | {count} | `{gold}` | `{answer}` | {miss.judged} | {right} |"


def page(given: argparse.Namespace) -> tuple[str, bool]:
    """The whole page, and whether nothing wrong was judged right."""
    start = time.perf_counter()
    texts, wrong = read_numbers(given.numbers, given.seed)
    tails = read_tails(given.numbers, given.seed)
    read = read_golds(given.gsm_symbolic)
    math = judge_math(given.golds, given.seed)
    seconds = time.perf_counter() - start
    rewrites = sum(math["rewritten"].values()) - math["perturbed"]
    strict = [miss for miss in math["theirs"] if miss.judged]
    goals = [
        (
            "random numbers in every allowed spelling, in Markdown, a box, with a unit: not read as they are",
            0,
            len(wrong),
            texts,
        ),
        ("numbers that go on (`12 or 15`, `5x`, `3:30`, `5 million`): read as something", 0, len(tails), given.numbers),
        *(
            (f"{source}: own gold not read, or another for it", 0, len(miss), count)
            for source, (count, miss) in read.items()
        ),
        (
            "MATH-like golds, naturally rewritten: judged wrong, or not told",
            "1 in 1,000",
            len(math["missed"]),
            rewrites,
        ),
        ("MATH-like golds, perturbed: judged right", 0, len(math["let by"]), math["perturbed"]),
        ("of these, not told: they earn 0 and count as unverifiable", "", len(math["untold"]), math["perturbed"]),
    ]
    lines = [
        "# Reading and comparing answers",
        "",
        f"Written by `python benchmarks/answers.py`{given.said}: seed {given.seed}, math-verify "
        f"{version('math-verify')}, {seconds:.0f} s on one of {os.cpu_count()} CPU cores, shared. "
        "What is right is known by how each text was made. How answers are read stands in "
        "[Tasks](../tasks.md#how-answers-are-read).",
        "",
        "| | goal | found | of |",
        "|---|---|---|---|",
        *(f"| {what} | {goal} | {found} | {count:,} |" for what, goal, found, count in goals),
        "",
        "## Rewrites",
        "",
        "| rewrite | cases | judged wrong, or not told |",
        "|---|---|---|",
    ]
    lost = Counter(miss.kind.rpartition(", ")[2] for miss in math["missed"])
    lines += [
        f"| {name} | {count} | {lost[name]} |" for name, count in math["rewritten"].items() if name != "perturbed"
    ]
    for title, found, right in (
        ("Numbers that were not read as what they are", wrong, "the number"),
        ("Numbers that go on and were read", tails, "unreadable"),
        ("Golds of data sets", [miss for _, misses in read.values() for miss in misses], "the gold"),
        ("Rewrites that were judged wrong or not told", math["missed"], "equal"),
        ("Perturbed answers that were judged right", math["let by"], "different"),
        ("Perturbed answers that were not told", math["untold"], "different"),
    ):
        lines += ["", f"## {title}", "", *(list(_listed(found, right)) or ["None."])]
    lines += [
        "",
        "## `math_verify` alone",
        "",
        f"With its own reading and settings on a third of the same responses ({math['compared']:,}), as whole texts: "
        f"{len(math['theirs']) - len(strict)} equal answers judged wrong, {len(strict)} different ones judged right. "
        "The construction is right in each of these; some are meant so by its makers (six decimals, letters without "
        "capitals, a set for a point).",
        "",
        *_listed(strict, "different"),
        "",
        *_listed([miss for miss in math["theirs"] if not miss.judged], "equal"),
        "",
    ]
    return "\n".join(lines), not (wrong or tails or math["let by"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and write the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--numbers", type=int, default=20_000, help="random numbers, and numbers that go on")
    options.add_argument("--gsm_symbolic", type=int, default=8_792, help="items of GSM-Symbolic")
    options.add_argument("--golds", type=int, default=6, help="draws of each MATH-like template")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--output", type=Path, default=PAGE)
    given = options.parse_args(arguments)
    if find_spec("reasoning_gym") is None:
        options.error('reasoning_gym is missing: pip install -c constraints.txt -e ".[gsm-symbolic]"')
    sizes = ("numbers", "gsm_symbolic", "golds")
    given.said = "".join(
        f" --{name} {size}" for name in sizes if (size := getattr(given, name)) != options.get_default(name)
    )
    text, fine = page(given)
    given.output.write_text(text)
    print(text)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
