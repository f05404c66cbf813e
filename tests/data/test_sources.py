"""Each hub data set's schema, from local files of ours to the rows of a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from hub_copies import COPIES, COUNT, gsm8k_rows, olympiadbench_row, write_lines, write_parquet

from ippo.data import SplitOptions, Task, columns
from ippo.data.collegemath import to_row as collegemath_row
from ippo.data.ecqa import ecqa_task
from ippo.data.gsm8k import gsm8k_task
from ippo.data.olympiadbench import to_row as physics_row
from ippo.errors import UsageError
from ippo.recipes.tasks import load_task

SPLITS = ("train", "gold", "validation", "test")
SMALL = SplitOptions(gold_size=2, validation_size=2, test_size=3)


def load(name: str, root: Path, options: SplitOptions = SMALL) -> Task:
    COPIES[name](root)
    return load_task(name, str(root), options)


@pytest.fixture
def gsm8k_files(tmp_path: Path) -> Path:
    write_lines(tmp_path / "train.jsonl", gsm8k_rows(1, COUNT))
    write_lines(tmp_path / "test.jsonl", gsm8k_rows(50, 3))
    return tmp_path


EXPECTED: dict[str, tuple[str, str, str]] = {
    "gsm8k": (
        "[MATH_TASK] Problem:\nAnn has 7 pens and buys 8 more. How many pens has she now?\n\nSolution:",
        " She has 7+8 = <<7+8=15>>15 pens.\n#### 15",
        "15",
    ),
    "math": (
        "[MATH_TASK] Problem:\nWhat is $7/2$ in geometry?\n\nSolution:",
        r" It is $\boxed{\frac{7}{2}}$.",
        r"\frac{7}{2}",
    ),
    "collegemath": (
        "[MATH_TASK] Problem:\nSimplify: $7 x + x$\n\nSolution:",
        r" The answer is $\boxed{8 x}$.",
        "8 x",
    ),
    "olympiadbench": (
        "[PHYSICS_TASK] Problem:\nAir does not matter.\nA stone falls for 7 s. How far, at $g=9.8$ m/s$^2$?\n"
        "Give the answer in m.\n\nSolution:",
        " $s = g t^2 / 2$ with $t = 7$.\nThe answer is $\\boxed{240.1}$.",
        "240.1",
    ),
    "ecqa": (
        "[COMMONSENSE_TASK] Problem:\nWhere do 7 people sleep?\n(A) sky\n(B) bed\n(C) sea\n(D) car\n(E) tree\n\n"
        "Solution:",
        " Beds are made for sleeping, the sky and the sea are not.\n#### B",
        "B",
    ),
}


@pytest.mark.parametrize("name", COPIES)
def test_the_right_columns_become_prompt_solution_and_answer(name: str, tmp_path: Path) -> None:
    task = load(name, tmp_path)
    rows = {row["prompt"]: row for split in SPLITS for row in getattr(task, split)}
    prompt, solution, answer = EXPECTED[name]
    assert (rows[prompt]["solution"], rows[prompt]["answer"]) == (solution, answer)


@pytest.mark.parametrize("name", COPIES)
def test_gold_solutions_are_right_by_the_task_s_own_verifier(name: str, tmp_path: Path) -> None:
    task = load(name, tmp_path)
    for split in SPLITS:
        table = columns(getattr(task, split))
        texts = {"prompts": table.pop("prompt"), "completions": table["solution"]}
        assert task.reward(**texts, **table) == [1.0] * len(texts["prompts"])
        assert all(task.check(**texts, **table)["correct"])
        assert task.equal(table["answer"][0], table["answer"][0])


def test_splits_that_are_given_are_kept_and_others_are_carved_out(tmp_path: Path) -> None:
    ours = load("gsm8k", tmp_path / "gsm8k")
    assert [len(getattr(ours, split)) for split in SPLITS] == [COUNT - 4, 2, 2, 3]
    assert {row["prompt"] for row in ours.test} == {
        f"[MATH_TASK] Problem:\n{raw['question']}\n\nSolution:" for raw in gsm8k_rows(50, 3)
    }
    three = load("ecqa", tmp_path / "ecqa")
    assert [len(getattr(three, split)) for split in SPLITS] == [COUNT - 2, 2, 2, 3]
    assert all("people sleep" in row["prompt"] and " 5" in row["prompt"] for row in three.validation)
    one = load("collegemath", tmp_path / "collegemath")  # a test split alone
    assert [len(getattr(one, split)) for split in SPLITS] == [COUNT - 7, 2, 2, 3]


def test_the_same_options_draw_the_same_rows_and_another_seed_others(gsm8k_files: Path) -> None:
    first, again = gsm8k_task(gsm8k_files, SMALL), gsm8k_task(gsm8k_files, SMALL)
    other = gsm8k_task(gsm8k_files, SplitOptions(2, 2, 3, seed=1))
    assert first.gold == again.gold
    assert first.train == again.train
    assert first.gold != other.gold


def test_gold_never_holds_a_false_sum(tmp_path: Path) -> None:
    rows = gsm8k_rows(1, 4) + [{"question": f"q{n}", "answer": f"{n}+1 = {n}\n#### {n}"} for n in range(20)]
    write_lines(tmp_path / "train.jsonl", rows)
    task = gsm8k_task(tmp_path, SplitOptions(gold_size=4, validation_size=1, test_size=1))
    assert all("Ann" in row["prompt"] for row in task.gold)
    with pytest.raises(UsageError, match=r"splits\.gold_size = 5: only 4 of 24 training rows have a solution without"):
        gsm8k_task(tmp_path, SplitOptions(gold_size=5, validation_size=1, test_size=1))


@pytest.mark.parametrize("name", ["train.jsonl", "train.json", "rows.parquet"])
def test_one_file_is_enough(name: str, tmp_path: Path) -> None:
    (write_parquet if name.endswith("parquet") else write_lines)(tmp_path / name, gsm8k_rows(1, 9))
    assert len(gsm8k_task(tmp_path / name, SMALL).train) == 2


def test_physics_leaves_out_what_is_no_open_ended_text_problem() -> None:
    good = olympiadbench_row(3)
    assert physics_row(good) is not None
    for change in (
        {"modality": "Multimodal"},
        {"question_type": "Theorem proof"},
        {"subject": "Math"},
        {"language": "Chinese"},
        {"answer_type": "Need_human_evaluate"},
        {"final_answer": None},
    ):
        assert physics_row({**good, **change}) is None, change


def test_physics_accepts_a_number_within_the_error_that_the_data_allows(tmp_path: Path) -> None:
    task = load("olympiadbench", tmp_path)
    texts = {"prompts": [""] * 3, "completions": [rf"\boxed{{{value}}}" for value in ("240.1", "240.05", "240.3")]}
    table: dict[str, Any] = {"answer": ["240.1"] * 3, "tolerance": [0.1] * 3}
    assert task.reward(**texts, **table) == [1.0, 1.0, 0.0]


def test_several_answers_may_come_in_any_order(tmp_path: Path) -> None:
    row = physics_row(olympiadbench_row(3, final_answer=["$2$", "$5$"], is_multiple_answer=True))
    assert row is not None
    task = load("olympiadbench", tmp_path)
    assert task.reward(prompts=[""], completions=[r"\boxed{5, 2}"], answer=[row["answer"]], tolerance=[0.0]) == [1.0]


def test_collegemath_uses_worked_solutions_where_a_copy_has_them() -> None:
    row = collegemath_row({"question": "q", "answer": "$4$", "solution": "Twice two."})
    assert row is not None
    assert row["solution"] == " Twice two.\nThe answer is $\\boxed{4}$."


def test_rows_without_an_answer_are_left_out_and_counted(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", [*gsm8k_rows(1, COUNT), {"question": "Why?", "answer": "Because."}])
    task = gsm8k_task(tmp_path, SMALL)
    assert "1 rows without a usable question or answer were left out" in task.notice
    assert not [row for row in task.train if "Why?" in row["prompt"]]


class TestBadInput:
    def test_a_renamed_column_names_the_expected_and_the_found(self, tmp_path: Path) -> None:
        write_lines(tmp_path / "train.jsonl", [{"query": "q", "answer": "#### 1"}])
        with pytest.raises(UsageError) as error:
            gsm8k_task(tmp_path)
        message = str(error.value)
        assert message.startswith("task_path = ")
        assert "has the columns question, answer, but here question is missing; found: query, answer" in message

    def test_no_network_says_how(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # or this would wait for it
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        words = r"no network, or no access .* `hf download --repo-type dataset tasksource/ecqa .* --task_path DIRECTORY"
        with pytest.raises(UsageError, match=words):
            ecqa_task()

    @pytest.mark.parametrize(
        ("files", "words"),
        [
            ({}, r"it holds no file that ends in \.parquet, \.jsonl, \.json"),
            ({"train.txt": "a,b"}, "it holds no file that ends in"),
            ({"train.csv": "question,answer"}, r"its train files cannot be read as \.csv"),
            ({"train.jsonl": "{broken"}, r"its train files cannot be read as \.jsonl"),
            ({"train.parquet": "broken"}, r"its train files cannot be read as \.parquet"),
            ({"train.jsonl": '{"question": "q", "answer": ""}'}, r"its train split has no usable row \(1 were read\)"),
            ({"train.jsonl": '{"question": "q", "answer": 3}'}, "its column answer holds 3, which is no text"),
            ({"dev.jsonl": '{"question": "q", "answer": "#### 1"}'}, "one split must be called train, or test"),
        ],
    )
    def test_a_directory_without_data(self, tmp_path: Path, files: dict[str, str], words: str) -> None:
        for name, content in files.items():
            (tmp_path / name).write_text(content)
        with pytest.raises(UsageError, match=words):
            gsm8k_task(tmp_path)

    def test_a_path_to_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="there is no such file or directory"):
            gsm8k_task(tmp_path / "nowhere")

    def test_a_split_that_would_be_empty(self, gsm8k_files: Path) -> None:
        with pytest.raises(UsageError, match=r"splits\.validation_size = 10: only 10 training rows are left"):
            gsm8k_task(gsm8k_files, SplitOptions(gold_size=2, validation_size=10))
        with pytest.raises(UsageError, match=r"splits\.gold_size = 0: a split needs at least one row"):
            SplitOptions(gold_size=0)

    def test_a_question_in_two_splits(self, tmp_path: Path) -> None:
        write_lines(tmp_path / "train.jsonl", gsm8k_rows(1, COUNT))
        write_lines(tmp_path / "test.jsonl", gsm8k_rows(COUNT, 3))
        with pytest.raises(UsageError, match="1 training questions are also in the test split"):
            gsm8k_task(tmp_path, SMALL)
        task = gsm8k_task(tmp_path, SplitOptions(2, 2, 3, overlap="drop"))
        assert "1 training questions that are also in another split were dropped" in task.notice
        assert len(task.train) == COUNT - 5

    def test_a_file_for_a_task_that_reads_none(self) -> None:
        with pytest.raises(UsageError, match="task_path = 'x': embedded is made in code"):
            load_task("embedded", "x")

    def test_another_recipe_s_task(self) -> None:
        with pytest.raises(UsageError, match="task = 'ecqa': use gsm8k, math"):
            load_task("ecqa", among=["gsm8k", "math"])
