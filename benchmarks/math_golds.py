"""Gold answers as MATH has them, made from templates: each with equal ways to write it and with others that differ.

All of them are ours; the data set is not here. ``answers.py`` runs them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple


class Gold(NamedTuple):
    """One gold answer.

    Args:
        kind: what it is.
        text: how it is written.
        others: answers that are not equal to it.
        reordered: the same in another order, where it has none.
        decimal: the same as a decimal number, where it has one that ends.
        number: whether it is a number, so that a unit or a percent sign may stand behind.
    """

    kind: str
    text: str
    others: tuple[str, ...]
    reordered: str | None = None
    decimal: str | None = None
    number: bool = False


def _frac(value: Fraction) -> str:
    sign = "-" if value < 0 else ""
    whole = str(abs(value.numerator))
    return f"{sign}{whole}" if value.denominator == 1 else rf"{sign}\frac{{{whole}}}{{{value.denominator}}}"


def _ending(value: Fraction) -> str | None:
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return f"{float(value):.12f}".rstrip("0").rstrip(".") if rest == 1 else None


def _numbers(rng: random.Random) -> list[Gold]:
    n, big, d = rng.randint(2, 99), rng.randint(10_001, 9_999_999), rng.choice((3, 4, 5, 7, 8, 16, 25))
    top = rng.choice([t for t in range(1, 4 * d) if Fraction(t, d).denominator == d])
    part, cents, e = Fraction(top, d), rng.randint(1, 99), rng.randint(5, 30)
    m = round(rng.uniform(1.1, 9.8), 1)
    size = f"{m}\\times 10^{{-{e}}}"
    whole, share = rng.randint(1, 9), Fraction(rng.randint(1, d - 1), d)
    money = f"{big % 10_000}.{cents:02d}"
    return [
        Gold("integer", str(n), (str(n + 1), f"-{n}", f"{n}0", f"\\frac{{1}}{{{n}}}"), decimal=f"{n}.0", number=True),
        Gold("negative", f"-{n}", (str(n), f"-{n - 1}", f"-\\frac{{1}}{{{n}}}"), decimal=f"-{n}.00", number=True),
        Gold("large integer", f"{big:,}", (str(big + 1), f"{big}0", str(big // 1000)), decimal=str(big), number=True),
        Gold("fraction", _frac(part), (_frac(1 / part), _frac(-part), _frac(part + 1)), None, _ending(part), True),
        Gold(
            "mixed number",
            whole_and(whole, share),
            (_frac(whole * share), str(whole)),
            None,
            _ending(whole + share),
            True,
        ),
        Gold(
            "decimal", f"{n}.{cents:02d}", (f"{n}.{cents:02d}1", f"{cents:02d}.{n}1", f"-{n}.{cents:02d}"), number=True
        ),
        Gold(
            "scientific",
            size,
            (size.replace(f"{m}", f"{m + 1:.1f}"), size.replace(f"-{e}", f"{e}"), f"{m}"),
            number=True,
        ),
        Gold(
            "power", f"2^{{{n}}}", (f"2^{{{n + 1}}}", f"{n}^2", str(2 * n + 1)), decimal=str(2**n) if n < 60 else None
        ),
        Gold("money", rf"\${money}", (rf"\${big % 10_000}.{(cents + 1) % 100:02d}", f"-{money}"), decimal=money),
        Gold("percent", rf"{n}\%", (rf"{n + 1}\%", rf"{n}.5\%"), decimal=str(n)),
        Gold("degrees", rf"{n}^\circ", (rf"{n + 1}^\circ", str(2 * n + 1)), decimal=str(n)),
        Gold("base", f"{rng.randint(1, 4)}{rng.randint(0, 4)}{d % 4}_5", (f"{d % 4 + 1}44_5", "2_6", f"1{d % 4}0_7")),
    ]


def whole_and(whole: int, share: Fraction) -> str:
    return f"{whole}{_frac(share)}"


def _expressions(rng: random.Random) -> list[Gold]:
    a, b, c = rng.sample(range(2, 12), 3)
    root = rng.choice((2, 3, 5, 6, 7))
    mixed = rf"{a}+{b}\sqrt{{{root}}}"
    poly, line = f"{a}x^2-{b}x+{c}", f"y={a}x+{b}"
    over = rf"\frac{{{a}\pi}}{{{a * b + 1}}}"
    matrix = rf"\begin{{pmatrix}}{a}&{b}\\{c}&{root}\end{{pmatrix}}"
    return [
        Gold(
            "surd",
            rf"{a}\sqrt{{{root}}}",
            (rf"{a}\sqrt{{{root + 4}}}", rf"-{a}\sqrt{{{root}}}", str(a * root)),
            number=True,
        ),
        Gold("surd sum", mixed, (mixed.replace("+", "-"), rf"{b}+{a}\sqrt{{{root}}}"), rf"{b}\sqrt{{{root}}}+{a}"),
        Gold(
            "surd over",
            rf"\frac{{\sqrt{{{root}}}}}{{{a}}}",
            (rf"\frac{{{a}}}{{\sqrt{{{root}}}}}", rf"\frac{{{root}}}{{{a}}}"),
        ),
        Gold("polynomial", poly, (f"{a}x^2+{b}x+{c}", f"{a}x^3-{b}x+{c}", f"{a}y^2-{b}y+{c}"), f"{c}-{b}x+{a}x^2"),
        Gold("factors", f"(x-{a})(x+{b})", (f"(x+{a})(x+{b})", f"(x-{a})(x-{b})"), f"(x+{b})(x-{a})"),
        Gold("multiple of pi", over, (over.replace(r"\pi", ""), rf"\frac{{{a}}}{{{a * b + 1}\pi}}", rf"-{over}")),
        Gold("logarithm", rf"\log_{{{a}}} {b}", (rf"\log_{{{b}}} {a}", rf"\log_{{{a}}} {b + 1}")),
        Gold("complex number", f"{a}+{b}i", (f"{a}-{b}i", f"{b}+{a}i" if a != b else "0"), f"{b}i+{a}"),
        Gold("letters", rf"{a}\pi R^2", (rf"{a}\pi r^2", rf"{a}\pi R", rf"{a}R^2")),
        Gold("line", line, (f"y={a}x-{b}", f"y={b}x+{a}", f"{a}x+{b + 1}"), f"y={b}+{a}x"),
        Gold("circle", f"x^2+y^2={a * a}", (f"x^2+y^2={a}", f"x^2-y^2={a * a}"), f"y^2+x^2={a * a}"),
        Gold(
            "matrix",
            matrix,
            (matrix.replace("&", "&1", 1), matrix.replace(f"{{pmatrix}}{a}", f"{{pmatrix}}-{a}")),
            None,
        ),
        Gold("inequality", f"x>{a}", (rf"x\ge {a}", f"x<{a}", f"x>{a + 1}"), f"{a}<x"),
    ]


def _collections(rng: random.Random) -> list[Gold]:
    a, b, c = sorted(rng.sample(range(-20, 40), 3))
    town = rng.choice(("Evelyn", "June 20", "parallelogram", "neither", "increasing"))
    letters = ",".join(sorted(rng.sample("ABCDEF", 2)))
    d = rng.randint(2, 9)
    return [
        Gold("point", f"({a},{b})", (f"({b},{a})", f"({a},{b + 1})", rf"\{{{a},{b}\}}", str(a))),
        Gold("triple", f"({a},{c},{b})", (f"({a},{b},{c})", f"({a},{c})", f"({a},{c},{b + 1})")),
        Gold(
            "point of fractions",
            rf"\left(\frac{{1}}{{{d}}},{c}\right)",
            (f"({d},{c})", rf"(\frac{{1}}{{{d}}},{c + 1})"),
        ),
        Gold("open interval", f"({a},{c})", (f"[{a},{c}]", f"({a},{c}]", f"({a},{c + 1})")),
        Gold("half-open interval", f"[{a},{c})", (f"({a},{c})", f"[{a},{c}]", f"({a},{c}]")),
        Gold("ray", rf"(-\infty,{b}]", (rf"(-\infty,{b})", rf"[{b},\infty)", rf"(-\infty,{b + 1}]"), rf"x\le {b}"),
        Gold(
            "union",
            rf"(-\infty,{a})\cup({b},\infty)",
            (rf"(-\infty,{a}]\cup({b},\infty)", rf"({a},{b})"),
            rf"({b},\infty)\cup(-\infty,{a})",
        ),
        Gold("list", f"{a}, {b}, {c}", (f"{a}, {b}", f"{a}, {b}, {c + 1}", str(a)), f"{c}, {a}, {b}"),
        Gold("set", rf"\{{{a}, {b}\}}", (rf"\{{{a}\}}", rf"\{{{a}, {b + 1}\}}", f"({a}, {b})"), rf"\{{{b}, {a}\}}"),
        Gold(
            "two roots",
            rf"\pm \sqrt{{{d + 1}}}" if d != 3 and d != 8 else r"\pm 7",
            (str(d), rf"\sqrt{{{d + 1}}}" if d != 3 and d != 8 else "7"),
        ),
        Gold("text", rf"\text{{{town}}}", (r"\text{Bob}", town[::-1], r"\text{June 21}"), town),
        Gold("letters of options", letters, (letters[0], "A,B,C", letters.replace(",", "")), letters[::-1]),
        Gold("option", rf"\text{{({letters[0]})}}", (r"\text{(G)}", "H"), letters[0]),
    ]


def golds(count: int, seed: int) -> list[Gold]:
    """``count`` draws of each template."""
    rng = random.Random(f"golds {seed}")
    return [gold for _ in range(count) for draw in (_numbers, _expressions, _collections) for gold in draw(rng)]


def _spaced(gold: Gold) -> str | None:
    text = re.sub(
        r"(?<=[0-9a-z}\)])([-+=<>])(?=[0-9a-z\\(])", r" \1 ", re.sub(r"(?<=[^0-9 ]),(?=\S)|(?<=\)),", ", ", gold.text)
    )
    return f" {text} "


def _thousands(gold: Gold) -> str | None:
    return gold.text.replace(",", r",\!") if gold.kind == "large integer" else None


def _bracketed(gold: Gold) -> str | None:
    if r"\left" in gold.text or gold.kind not in (
        "point",
        "triple",
        "open interval",
        "half-open interval",
        "ray",
        "factors",
    ):
        return None
    return re.sub(
        r"[)\]]", lambda found: rf"\right{found[0]}", re.sub(r"[(\[]", lambda found: rf"\left{found[0]}", gold.text)
    )


def _named(gold: Gold) -> str | None:
    return f"k = {gold.text}" if gold.number or gold.kind in ("surd sum", "matrix", "multiple of pi") else None


REWRITES: dict[str, Callable[[Gold], str | None]] = {
    "spaces": _spaced,
    r"\dfrac": lambda gold: gold.text.replace(r"\frac", r"\dfrac") if r"\frac" in gold.text else None,
    "dollar signs": lambda gold: f"${gold.text}$",
    "full stop": lambda gold: f"{gold.text}.",
    r"\left, \right": _bracketed,
    "unit": lambda gold: rf"{gold.text} \text{{ square inches}}" if gold.number else None,
    "percent": lambda gold: rf"{gold.text}\%" if gold.number and gold.kind != "scientific" else None,
    "another order": lambda gold: gold.reordered,
    "x =": _named,
    "decimal or text": lambda gold: gold.decimal,
    r"thousands by ,\!": _thousands,
}
