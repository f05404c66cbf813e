"""Numbers as people write them, and texts that only begin like one. ``answers.py`` runs them."""

from __future__ import annotations

import random
from fractions import Fraction


def spellings(value: Fraction, digits: int) -> dict[str, str]:
    """Every allowed way to write ``value``, which has ``digits`` decimals; -1 where it is to be a fraction."""
    sign, size = ("-" if value < 0 else ""), abs(value)
    written = {"fraction": f"{sign}{size.numerator}/{size.denominator}"}
    written["frac"] = rf"{sign}\frac{{{size.numerator}}}{{{size.denominator}}}"
    whole, rest = divmod(size, 1)
    if whole and rest and len(str(rest.numerator)) != 3:
        written["mixed"] = f"{sign}{whole} {rest.numerator}/{rest.denominator}"
        written["mixed frac"] = rf"{sign}{whole}\frac{{{rest.numerator}}}{{{rest.denominator}}}"
    if digits < 0:
        return written
    scaled = int(size * 10**digits)
    places = f".{scaled % 10**digits:0{digits}d}" if digits else ""
    plain = f"{whole}{places}"
    written |= {"plain": sign + plain, "zeros": f"{sign}{plain}{'' if digits else '.'}00", "minus sign": plain}
    written["minus sign"] = f"\u2212{plain}" if sign else f"+{plain}"
    grouped = f"{int(whole):,}"
    for name, between in (
        ("commas", ","),
        ("spaces", " "),
        ("braces", "{,}"),
        ("thin spaces", r"\,"),
        ("no-break", "\u00a0"),
    ):
        written[name] = sign + grouped.replace(",", between) + places
    if digits and not whole:
        written["no zero"] = sign + places
    written["e"] = f"{sign}{scaled}e-{digits}"
    written["power"] = f"{sign}{scaled}*10^{{-{digits}}}"
    written["times"] = rf"{sign}{scaled} \times 10^{{-{digits}}}"
    return written


WRAPPINGS = (
    *("{}", " {} ", "{}.", "**{}**", "`{}`", "${}$", r"\({}\)", r"\boxed{{{}}}", r"$\boxed{{{}}}$.", "= {}", "x = {}"),
    *(
        "Answer: {}",
        "**Answer:** {}",
        "{} ####",
        "{} apples",
        "{} km/h.",
        "{}%",
        r"{}\%",
        "{} cm^2",
        "{} dollars",
        "{}\nDone.",
    ),
)
TAILS = (
    *(
        " or {}",
        " and {}",
        ", {}",
        "; {}",
        " to {}",
        "-{}",
        " - {} = 2",
        " + {}",
        "*{}",
        " x {}",
        "/0",
        "/{}/3",
        ":{}",
        "^{}",
    ),
    *(
        "**{}",
        "x",
        "y^2",
        " z",
        "k",
        "M",
        " million",
        " thousand",
        " dozen",
        " hundredths",
        " halves",
        "!",
        "i",
        "e",
        " pi",
        "_{}",
    ),
    *(
        ",5",
        ",25",
        ",1234",
        ".5.{}",
        "...",
        "..",
        " 1 2",
        " 12",
        " ½",
        "½",
        "٣",
        " or more",
        " not",
        " squared",
        " = {}",
        " < {}",
        "%%",
    ),
    *(
        " or twelve",
        " and a half",
        "e999",
        "*10^999",
        " apples and {} pears",
        " \\sqrt{{2}}",
        ".\\frac12",
        " ({})",
        "∞",
        " below zero",
    ),
)


def random_number(rng: random.Random) -> tuple[Fraction, int]:
    kind = rng.choice(("integer", "decimal", "fraction"))
    size = 10 ** rng.randint(1, 9)
    if kind == "fraction":
        return Fraction(rng.randint(-size, size), rng.randint(2, 999)), -1
    digits = rng.randint(1, 6) if kind == "decimal" else 0
    return Fraction(rng.randint(-size, size), 10**digits), digits
