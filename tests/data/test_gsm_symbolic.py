from __future__ import annotations

import pytest

from ippo.data import SplitOptions, columns
from ippo.data.gsm_symbolic import GSMSymbolicOptions, gsm_symbolic_task, to_row
from ippo.errors import UsageError
from ippo.rewards import sound

SPLITS = ("train", "gold", "validation", "test")
SIZES = SplitOptions(gold_size=20, validation_size=10, test_size=30, train_size=400)


def test_answers_are_numbers_with_their_sign() -> None:
    for text, answer in (("#### 36.0", "36"), ("#### -4", "-4"), ("#### 1,250", "1250")):
        row = to_row({"question": "q", "metadata": {"answer_cot": f"12 of 3\n{text}"}})
        assert row is not None
        assert row["answer"] == answer
    assert to_row({"question": "q", "metadata": {"answer_cot": "no answer"}}) is None


def test_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(UsageError, match=r"pip install reasoning-gym"):
        gsm_symbolic_task(SIZES)


def test_without_templates_there_is_no_task() -> None:
    with pytest.raises(UsageError, match=r"gsm_symbolic\.templates = \[\]"):
        GSMSymbolicOptions([])


class TestWithThePackage:
    @pytest.fixture(autouse=True)
    def _package(self) -> None:
        pytest.importorskip("reasoning_gym")

    def test_no_question_twice_and_neighbouring_seeds_share_none(self) -> None:
        tasks = [gsm_symbolic_task(SplitOptions(20, 10, 30, 400, seed=seed)) for seed in (0, 1)]
        prompts = [[row["prompt"] for split in SPLITS for row in getattr(task, split)] for task in tasks]
        assert [len(set(one)) for one in prompts] == [460, 460]
        assert len(set(prompts[0]) & set(prompts[1])) < 20  # by chance; items of seeds 0 and 1 would share all but one

    def test_every_solution_earns_the_reward_and_gold_has_no_false_sum(self) -> None:
        task = gsm_symbolic_task(SIZES)
        for split in SPLITS:
            table = columns(getattr(task, split))
            assert set(task.reward(table["prompt"], table["solution"], answer=table["answer"])) == {1.0}
        assert all(sound(row["solution"]) for row in task.gold)
        assert not all(sound(row["solution"]) for row in task.train)

    def test_held_out_splits_do_not_depend_on_the_training_size(self) -> None:
        other = gsm_symbolic_task(SplitOptions(20, 10, 30, 5))
        task = gsm_symbolic_task(SIZES)
        assert (other.gold, other.validation, other.test) == (task.gold, task.validation, task.test)

    def test_templates_are_those_that_are_named(self) -> None:
        task = gsm_symbolic_task(SIZES, GSMSymbolicOptions([10, 58]))
        texts = [row["prompt"] for split in SPLITS for row in getattr(task, split)]
        assert {("right now?" in text, "calories" in text) for text in texts} == {(True, False), (False, True)}

    def test_a_template_that_is_not_offered_is_refused(self) -> None:
        with pytest.raises(
            UsageError, match=r"gsm_symbolic\.templates = \[32\]: reasoning_gym offers no such template"
        ):
            gsm_symbolic_task(SIZES, GSMSymbolicOptions([10, 32]))
