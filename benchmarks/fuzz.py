"""What a model writes is data: hostile texts by the million through every parser that reads it.

    python benchmarks/fuzz.py                     # a million texts
    python benchmarks/fuzz.py --inputs 20000 --seed 7 --parsers final_answer

A parser passes if it raises nothing and takes at most 50 ms of CPU time for any text, up to a megabyte long. Prints a
line a parser with its slowest text's kind, and exits with 1 if one fails. Texts depend on the seed and their number
alone, so that a failure can be repeated.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ippo.data.embedded import check_chains
from ippo.functional.accuracy import majority_vote
from ippo.rewards import (
    boxed_answer,
    chosen,
    classify_chain,
    classify_solution,
    equations,
    final_answer,
    is_correct,
    notation,
    numeric_reward,
    parse_step,
)

OPTIONS = ["sky", "a bed", "sea", "(A)", ""]

Parser = Callable[[str], object]
Kind = Callable[[random.Random], str]

STEPS, ANSWER = ["7+5=12", "12-3=9", "9*2=18"], "18"
MEGABYTE = 1_000_000


def take_apart(text: str) -> object:
    """All that is done to a LaTeX answer before ``math_verify`` sees it."""
    text = notation.tidy(text)
    parts = notation.split(text, "=", r"\in"), notation.split_unit(text), notation.bracketed(text)
    return parts, notation.listed(text), notation.is_text(text), notation.plain_text(text), notation.without_text(text)


PARSERS: dict[str, Parser] = {
    "final_answer": final_answer,
    "is_correct": lambda text: is_correct(text, ANSWER),
    "is_correct, gold": lambda text: is_correct(f"#### {ANSWER}", text),  # a data set's own text is data too
    "numeric_reward": lambda text: numeric_reward(["?"], [text], answer=[ANSWER]),
    "parse_step": parse_step,
    "classify_chain": lambda text: classify_chain(text, STEPS, ANSWER),
    "classify_chain, right": lambda text: classify_chain(f"{text}\n#### {ANSWER}", STEPS, ANSWER),
    "check_chains": lambda text: check_chains(["?"], [text], answer=[ANSWER], steps=[STEPS]),
    "chosen": chosen,
    "chosen of options": lambda text: chosen(text, OPTIONS),
    "boxed_answer": boxed_answer,
    "notation": lambda text: take_apart(boxed_answer(text) or text[:512]),
    "equations": equations,
    "classify_solution": lambda text: classify_solution(text, True, ANSWER),
    "majority_vote": lambda text: majority_vote([text, text[::-1], None, text[:64], final_answer(text), text]),
}

_DIGITS = "0123456789٣४௫５𝟗²Ⅷ½"  # of several scripts; only the first ten are digits to a parser
_CONTROL = "".join(map(chr, range(32))) + "\x7f\x85\u2028\u2029\u202e\ufeff\u200b\ud800"
_PIECES = (
    *("####", "#", "####\n", "$", ",", ".", "-", "+", "e", "=", "/", "*", "**", "(", ")", "<<", ">>", " ", "\n", "\t"),
    *("7+5=12", "12-3=9", "9*2=18", "#### 18", "9**9**9", "1/0", "nan", "inf", "1e999999999", "0x1F", "1_000", "-0"),
    *("\\boxed{", "\\frac{1}{", "\\sqrt{", "}", "\\text{", "^{", "_{", "\\left(", "\\right)", "\\dfrac12", "\\pi"),
    *("<script>alert(1)</script>", "__import__('os')", "{{7*7}}", "%s%n", "\x1b[31m", "../../etc/passwd", "(A)", "E)"),
)
_BRACKETS = ("{", "}", "\\frac{", "\\boxed{", "\\sqrt{", "(", "((", "^{", "<<", "\\left(")


def _soup(rng: random.Random) -> str:
    return "".join(rng.choices(_PIECES, k=rng.randint(0, 30)))


def _numbers(rng: random.Random) -> str:
    return "#" * rng.randint(0, 6) + "".join(rng.choices(_DIGITS + ",.+-$ eE/", k=rng.randint(0, 60)))


def _steps(rng: random.Random) -> str:
    numbers = iter(lambda: "".join(rng.choices(_DIGITS[:12], k=rng.randint(1, 20))), None)
    lines = (f"{next(numbers)}{rng.choice('+-*/x^')}{next(numbers)}={next(numbers)}" for _ in range(rng.randint(0, 9)))
    return "\n".join((*lines, f"#### {next(numbers)}"))


def _unicode(rng: random.Random) -> str:
    return "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randint(0, 40)))


def _controls(rng: random.Random) -> str:
    return "".join(rng.choices(_CONTROL + "#1=+", k=rng.randint(0, 60)))


def _powers(rng: random.Random) -> str:
    tower = "**".join(rng.choices("789", k=rng.randint(2, 40)))
    return rng.choice(("#### {}", "{}=1", "\\boxed{{{}}}", "<<{}=9>>")).format(tower)


def _nested(rng: random.Random) -> str:
    depth, opening = rng.randint(1, 300), rng.choice(_BRACKETS)
    return rng.choice(("#### ", "", "\\boxed{")) + opening * depth + "1" + "}" * rng.randint(0, depth)


def _mutated(rng: random.Random) -> str:
    """A right answer with a few cuts, copies and swaps."""
    text = "\n".join((*STEPS, f"#### {ANSWER}"))
    for _ in range(rng.randint(1, 6)):
        start, stop = sorted(rng.choices(range(len(text) + 1), k=2))
        text = text[:start] + rng.choice(("", text[start:stop] * 2, rng.choice(_PIECES))) + text[stop:]
    return text


def _megabyte(rng: random.Random) -> str:
    """Few pieces again and again, between two ends that may be a marked answer."""
    unit = "".join(rng.choices((*_PIECES, *_BRACKETS, *_DIGITS, *_CONTROL), k=rng.randint(1, 4)))
    ends = ("", "####", "#### 18", "\n#### 18", "7+5=12\n", "\\boxed{")
    return rng.choice(ends) + unit * (MEGABYTE // len(unit)) + rng.choice(ends)


KINDS: dict[str, Kind] = {
    "pieces": _soup,
    "numbers": _numbers,
    "steps": _steps,
    "unicode": _unicode,
    "control characters": _controls,
    "powers": _powers,
    "nested": _nested,
    "mutated": _mutated,
    "two kinds": lambda rng: _mutated(rng) + rng.choice((_soup, _numbers, _unicode, _nested))(rng),
}
EVERY_MEGABYTE = 2000  # one text in so many is a megabyte long


def text_number(seed: int, number: int) -> tuple[str, str]:
    """The kind and the text of one input."""
    rng = random.Random(seed * 1_000_003 + number)
    if number % EVERY_MEGABYTE == 0:
        return "megabyte", _megabyte(rng)
    name = rng.choice(list(KINDS))
    return name, KINDS[name](rng)


@dataclass
class Record:
    """What one parser did.

    Args:
        seconds: CPU time over all texts.
        slowest: seconds of the slowest, ``what`` it was.
        failures: texts that raised, or took longer than the limit.
    """

    seconds: float = 0.0
    slowest: float = 0.0
    what: str = ""
    failures: list[str] = field(default_factory=list)


def timed(parser: Parser, text: str) -> float:
    """CPU seconds of this thread: what the machine does beside does not count."""
    start = time.thread_time()
    parser(text)
    return time.thread_time() - start


def fuzz(parsers: Mapping[str, Parser], inputs: int, seed: int, limit: float) -> dict[str, Record]:
    """Every text through every parser. A text above the limit has two more tries: collecting garbage is not parsing."""
    records = {name: Record() for name in parsers}
    for number in range(inputs):
        kind, text = text_number(seed, number)
        for name, parser in parsers.items():
            record = records[name]
            try:
                seconds = timed(parser, text)
                if seconds > limit:
                    seconds = min(seconds, timed(parser, text), timed(parser, text))
            except Exception as error:
                record.failures.append(f"text {number} ({kind}), {text[:60]!r}: {type(error).__name__}: {error}")
                continue
            record.seconds += seconds
            if seconds > record.slowest:
                record.slowest, record.what = seconds, f"{kind}, {len(text):,} characters, {text[:16]!r}..."
            if seconds > limit:
                record.failures.append(f"text {number} ({kind}), {text[:60]!r}: {1000 * seconds:.0f} ms")
    return records


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and print a line a parser."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--inputs", type=int, default=1_000_000, help="texts through each parser")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--limit_ms", type=float, default=50.0, help="CPU milliseconds a text may take")
    options.add_argument("--parsers", nargs="+", choices=PARSERS, default=list(PARSERS))
    given = options.parse_args(arguments)
    chosen = {name: PARSERS[name] for name in given.parsers}
    records = fuzz(chosen, given.inputs, given.seed, given.limit_ms / 1000)
    print(f"{given.inputs:,} texts, seed {given.seed}, limit {given.limit_ms:g} ms of CPU time\n")
    print("| parser | failures | mean µs | slowest ms | slowest text |\n|---|---|---|---|---|")
    for name, record in records.items():
        mean, slowest = 1e6 * record.seconds / given.inputs, 1000 * record.slowest
        print(f"| {name} | {len(record.failures)} | {mean:.1f} | {slowest:.2f} | {record.what} |")
    for name, record in records.items():
        for failure in record.failures[:5]:
            print(f"\n{name}: {failure}")
    return int(any(record.failures for record in records.values()))


if __name__ == "__main__":
    sys.exit(main())
