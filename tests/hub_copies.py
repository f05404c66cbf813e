"""A few rows in each hub data set's own schema, as local files laid out like a download of it. All rows are ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

Raw = dict[str, Any]

COUNT = 12  # rows of a training split


def write_parquet(path: Path, rows: Sequence[Raw]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


def write_lines(path: Path, rows: Sequence[Raw]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def gsm8k_rows(first: int, count: int) -> list[Raw]:
    return [
        {
            "question": f"Ann has {n} pens and buys {n + 1} more. How many pens has she now?",
            "answer": f"She has {n}+{n + 1} = <<{n}+{n + 1}={2 * n + 1}>>{2 * n + 1} pens.\n#### {2 * n + 1}",
        }
        for n in range(first, first + count)
    ]


def gsm8k(root: Path) -> None:
    """``main`` beside the configuration ``socratic``, which must not be read."""
    write_parquet(root / "main" / "train-00000-of-00001.parquet", gsm8k_rows(2, COUNT))
    write_parquet(root / "main" / "test-00000-of-00001.parquet", gsm8k_rows(50, 3))
    write_parquet(root / "socratic" / "train-00000-of-00001.parquet", gsm8k_rows(50, 3))


def math_rows(first: int, count: int, kind: str) -> list[Raw]:
    return [
        {
            "problem": f"What is ${n}/2$ in {kind}?",
            "level": "Level 1",
            "type": kind,
            "solution": rf"It is $\boxed{{\frac{{{n}}}{{2}}}}$.",
        }
        for n in range(first, first + count)
    ]


def math(root: Path) -> None:
    for kind in ("algebra", "geometry"):
        write_parquet(root / kind / "train-00000-of-00001.parquet", math_rows(3, COUNT // 2, kind))
        write_parquet(root / kind / "test-00000-of-00001.parquet", math_rows(50, 2, kind))


def collegemath(root: Path) -> None:
    rows = [
        {
            "data_source": "college_math.Beginning_and_Intermediate_Algebra",
            "question_number": f"exercise.1.2.{n}",
            "question": f"Simplify: ${n} x + x$",
            "answer": f"${n + 1} x$",
            "license": "Creative Commons Attribution 3.0 Unported License (CC BY 3.0)",
            "data_topic": "college_math.algebra",
        }
        for n in range(2, 2 + COUNT)
    ]
    write_lines(root / "college-math-test.jsonl", rows)


def olympiadbench_row(n: int, **changes: Any) -> Raw:
    row = {
        "id": n,
        "question": f"A stone falls for {n} s. How far, at $g=9.8$ m/s$^2$?",
        "solution": [f"$s = g t^2 / 2$ with $t = {n}$."],
        "final_answer": [f"${4.9 * n * n:.1f}$"],
        "context": "Air does not matter.",
        "modality": "Text-only",
        "difficulty": "Competition",
        "is_multiple_answer": False,
        "unit": "m",
        "answer_type": "Numerical",
        "error": "1e-1",
        "question_type": "Open-ended",
        "subfield": "Mechanics",
        "subject": "Physics",
        "language": "English",
    }
    return {**row, **changes}


def olympiadbench(root: Path) -> None:
    rows = [olympiadbench_row(n) for n in range(1, 1 + COUNT)]
    name = "OE_TO_physics_en_COMP"
    write_parquet(root / "OlympiadBench" / name / f"{name}.parquet", rows)
    other = [olympiadbench_row(n, subject="Math") for n in range(20, 23)]
    write_parquet(root / "OlympiadBench" / "OE_TO_maths_en_COMP" / "OE_TO_maths_en_COMP.parquet", other)


def ecqa_rows(first: int, count: int) -> list[Raw]:
    return [
        {
            "q_no": str(n),
            "q_concept": "sleep",
            "q_text": f"Where do {n} people sleep?",
            "q_op1": "sky",
            "q_op2": "bed",
            "q_op3": "sea",
            "q_op4": "car",
            "q_op5": "tree",
            "q_ans": "bed",
            "taskA_pos": "A bed is made for sleeping.",
            "taskA_neg": "Nobody sleeps in the sky.",
            "taskB": "Beds are made for sleeping, the sky and the sea are not.",
        }
        for n in range(first, first + count)
    ]


def ecqa(root: Path) -> None:
    for split, first, count in (("train", 1, COUNT), ("validation", 50, 2), ("test", 60, 3)):
        write_parquet(root / "data" / f"{split}-00000-of-00001.parquet", ecqa_rows(first, count))
    (root / "dataset_infos.json").write_text('{"default": {"features": {}}}')  # older data sets have this beside them


COPIES: dict[str, Callable[[Path], None]] = {
    "gsm8k": gsm8k,
    "math": math,
    "collegemath": collegemath,
    "olympiadbench": olympiadbench,
    "ecqa": ecqa,
}
