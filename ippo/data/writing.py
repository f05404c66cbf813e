"""How problems and solutions of real data sets are written for the policy."""

from __future__ import annotations


def problem_prompt(question: str, kind: str = "MATH") -> str:
    """The prompt of VinePPO's public configuration for GSM8K and MATH, used for every data set here.

    Example:
        >>> problem_prompt("How many?")
        '[MATH_TASK] Problem:\\nHow many?\\n\\nSolution:'
    """
    return f"[{kind}_TASK] Problem:\n{question.strip()}\n\nSolution:"


def in_box(solution: str, answer: str) -> str:
    r"""A solution that says its answer in ``\boxed{}``, so that the policy learns to.

    Example:
        >>> in_box("Twice 2 is 4.", "4")
        ' Twice 2 is 4.\nThe answer is $\\boxed{4}$.'
    """
    ending = rf"The answer is $\boxed{{{answer}}}$."
    return f" {solution.strip()}\n{ending}" if solution.strip() else f" {ending}"
