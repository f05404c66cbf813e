"""GSM-Symbolic: word problems in GSM8K's style from templates, made on the spot by the package ``reasoning_gym``.

After Mirzadeh et al. 2024 (arXiv 2410.05229). No download: the extra ``gsm-symbolic`` installs the package. It seeds
item i with seed + i, so that neighbouring seeds share almost all items: one stream feeds all splits, each question
once. Solutions end in ``#### 36.0`` as well as ``#### 36``: answers are compared as numbers. Its own scorer takes
the first number of a text, without its sign: answers are read after ``####`` by us. Some solutions round on the way
(``34.80 - 4.80 = 29``): such a one is never gold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ippo.data.splits import SplitOptions
from ippo.data.task import Row, Task
from ippo.data.writing import problem_prompt
from ippo.errors import UsageError, require
from ippo.rewards import NUMBERS, final_answer, sound

_GAP = 10_000_000  # items between two seeds: far more than any run draws
_TRAIN, _TEST = 7473, 1319  # rows where the options leave it open: GSM8K's sizes


@dataclass(frozen=True)
class GSMSymbolicOptions:
    """Dials of GSM-Symbolic.

    Args:
        templates: numbers of the templates that problems are made from, as the package ``reasoning_gym`` counts them;
            all that it offers when null. Few make an easier task.
    """

    templates: list[int] | None = None

    def __post_init__(self) -> None:
        require(self.templates != [], "gsm_symbolic.templates", self.templates, "name at least one, or say null")


def gsm_symbolic_task(options: SplitOptions = SplitOptions(), dials: GSMSymbolicOptions = GSMSymbolicOptions()) -> Task:
    """Draw the four splits of GSM-Symbolic; the same options give the same rows.

    Raises:
        UsageError: if ``reasoning_gym`` is not installed, does not offer a template, or the templates have too few
            problems.
    """
    try:
        from reasoning_gym import create_dataset
    except ImportError as error:
        remedy = f"it needs the package reasoning_gym ({error}): pip install reasoning-gym"
        raise UsageError("task", "gsm_symbolic", remedy) from error
    items = create_dataset("gsm_symbolic", size=_GAP, seed=options.seed * _GAP)
    seen: set[str] = set()
    places = _places(items.task_indices, dials.templates)

    def draw(size: int, clean: bool = False) -> list[Row]:
        rows: list[Row] = []
        while len(rows) < size:
            row = to_row(items[next(places)])
            if row is not None and row["prompt"] not in seen and (not clean or sound(row["solution"])):
                seen.add(row["prompt"])
                rows.append(row)
        return rows

    # The held-out splits come first, so that they stay the same when only the size of the training split changes.
    gold, validation = draw(options.gold_size, clean=True), draw(options.validation_size)
    test, train = draw(options.test_size or _TEST), draw(options.train_size or _TRAIN)
    return Task("gsm_symbolic", train, gold, validation, test, NUMBERS.reward, NUMBERS.check, NUMBERS.equal)


def _places(made_from: list[int], templates: list[int] | None) -> Iterator[int]:
    """The items that are made from these templates; ``made_from`` has the template of each.

    Raises:
        UsageError: if there is no such template; or, when all items have been drawn, that they are too few.
    """
    offered = set(made_from)
    unknown = [number for number in templates or () if number not in offered]
    remedy = f"reasoning_gym offers no such template: use some of {', '.join(map(str, sorted(offered)))}"
    require(not unknown, "gsm_symbolic.templates", unknown, remedy)
    wanted = offered if templates is None else set(templates)
    yield from (place for place, number in enumerate(made_from) if number in wanted)
    raise UsageError("gsm_symbolic.templates", templates, "they have fewer problems than the splits ask for: use more")


def to_row(item: dict[str, Any]) -> Row | None:
    """A row of the task.

    Example:
        >>> to_row({"question": "1.5 and 1.5?", "metadata": {"answer_cot": "1.5+1.5=3.0\\n#### 3.0"}})["answer"]
        '3'
    """
    solution = item["metadata"]["answer_cot"]
    answer = final_answer(solution)
    if answer is None:
        return None
    return {"prompt": problem_prompt(item["question"]), "solution": f" {solution}", "answer": answer}
