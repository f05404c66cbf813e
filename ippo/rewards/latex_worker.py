"""A program of its own: compares LaTeX expressions with ``math_verify``, one JSON request a line, until its input ends.

It is run by path, not imported: so it starts without torch, and :mod:`ippo.rewards.latex_judge` can end it at any time.
"""

from __future__ import annotations

import json
import sys
from typing import Any

_MEMORY = 2 * 1024**3  # bytes: a tower of powers must not take the machine with it
_DIGITS = 50  # to which closed forms are worked out, relative to their size: there are numbers below 1e-19
_SAME = 10 ** -(_DIGITS - 10)
_SLACK = 1e-9  # of a tolerance, for the rounding at its boundary


def compare(gold: str, answer: str, tolerance: float) -> bool | None:
    """Whether two LaTeX expressions are equal, or None where one of them cannot be read.

    ``math_verify``'s own extraction is passed by: it looks for something that it can read anywhere in a text, strips
    letters that may be units (``2t``) and takes ``R`` for ``r``. Its numbers are equal to a fixed number of decimals.
    """
    from math_verify import verify

    left, right = _read(gold), _read(answer)
    numbers = _number(left), _number(right)
    if numbers[0] is not None and numbers[1] is not None:
        return _near(*numbers, tolerance)
    if tolerance and _matrices_near(left, right, tolerance):
        return True
    settings = {"float_rounding": 100, "numeric_precision": 100, "allow_set_relation_comp": True}
    return bool(verify(left, right, timeout_seconds=None, raise_on_error=True, **settings))


def _read(text: str) -> Any:
    """The expression, its decimals as exact fractions."""
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from latex2sympy2_extended.math_normalization import NormalizationConfig, normalize_latex
    from math_verify.grader import should_treat_as_complex
    from sympy import Float, Rational

    tidy = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    expression = latex2sympy(
        normalize_latex(text, tidy),
        is_real=not should_treat_as_complex(text),
        convert_degrees=True,
        normalization_config=None,
        conversion_config=ConversionConfig(lowercase_symbols=False),
    )
    floats = {one: Rational(str(one)) for one in getattr(expression, "atoms", lambda _: ())(Float)}
    return expression.xreplace(floats) if floats else expression


def _number(expression: Any) -> Any:
    """The value of an expression without variables, or None for any other."""
    from sympy import Expr

    if not isinstance(expression, Expr) or not expression.is_number:
        return None
    value = expression.evalf(_DIGITS, maxn=10 * _DIGITS)
    return value if value.is_number and value.is_finite else None


def _near(left: Any, right: Any, tolerance: float) -> bool:
    difference, size = abs(left - right), max(abs(left), abs(right))
    return bool(difference <= _SAME * size or (tolerance and difference <= tolerance * (1 + _SLACK)))


def _matrices_near(left: Any, right: Any, tolerance: float) -> bool:
    from sympy import MatrixBase

    if not (isinstance(left, MatrixBase) and isinstance(right, MatrixBase) and left.shape == right.shape):
        return False
    pairs = [(_number(one), _number(two)) for one, two in zip(left.flat(), right.flat(), strict=True)]
    return all(one is not None and two is not None and _near(one, two, tolerance) for one, two in pairs)


def main() -> None:
    """Serve requests ``[gold, answer, tolerance]``; each answer is true, false or null."""
    import logging

    del sys.path[0]  # what lies beside this file must not be taken for a library
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    logging.disable()
    import math_verify  # noqa: F401

    answers, sys.stdout = sys.stdout, sys.stderr
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        try:
            verdict = compare(*json.loads(line))
        except (Exception, RecursionError):  # whatever a parser of free text may raise: it could not be read
            verdict = None
        print(json.dumps(verdict), file=answers, flush=True)


if __name__ == "__main__":
    main()
