from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from parts import GivenScores, MakeModule, MakeTrainer, make_episodes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ippo import Episodes, PromptDataModule
from ippo.callbacks import EpisodeLogger, InfluenceFilterCallback
from ippo.data import Task
from ippo.data.prompts import PromptOptions
from ippo.errors import UsageError
from ippo.rollout.sampling import Sampling

COLUMNS = {
    "iteration",
    "prompt",
    "response",
    "reward",
    "finished",
    "reward_raw",
    "answer",
    "correct",
    "chain",
    "faithful",
    "score",
    "weight",
    "kept",
    "reason",
}


@pytest.fixture
def data(task: Task) -> PromptDataModule:
    return PromptDataModule(task, PromptOptions(prompts_per_iteration=2))


def read(folder: Path) -> dict[str, list[Any]]:
    """As a user would: by the `datasets` library."""
    table = datasets.load_dataset(
        "parquet", data_files=str(folder / "*.parquet"), cache_dir=str(folder / "cache"), split="train"
    )
    return table.to_dict()


def shown(folder: Path) -> dict[int, str]:
    """Texts in TensorBoard, by iteration."""
    events = EventAccumulator(str(folder)).Reload()
    if "episodes/text_summary" not in events.Tags()["tensors"]:
        return {}
    texts = events.Tensors("episodes/text_summary")
    return {text.step: text.tensor_proto.string_val[0].decode() for text in texts}


class TestFiles:
    def test_hold_every_episode_of_every_iteration(
        self, tmp_path: Path, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        scores = GivenScores([3.0, -1.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0])
        trainer = make_trainer(InfluenceFilterCallback.paper(scorer=scores), EpisodeLogger(), max_epochs=2)
        trainer.fit(make_module(samples_per_prompt=2), data)
        names = ["iteration-00000-rank-00.parquet", "iteration-00001-rank-00.parquet"]
        assert sorted(os.listdir(tmp_path / "episodes")) == names

        table = read(tmp_path / "episodes")
        assert table.keys() == COLUMNS
        assert table["iteration"] == [0] * 4 + [1] * 4
        assert table["score"] == [3.0, 1.0, 2.0, -1.0, 1.0, 1.0, 1.0, 1.0]
        assert table["weight"] == [1.5, 0.5, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]
        assert table["kept"] == [True, True, True, False] + [True] * 4
        assert table["reason"] == ["", "", "", "score <= 0", "", "", "", ""]
        assert set(table["prompt"]) <= {row["prompt"] for row in data.task.train}
        assert table["faithful"] == [chain == "faithful" for chain in table["chain"]]
        assert table["correct"] == [chain != "wrong" for chain in table["chain"]]

    def test_say_neither_faithful_nor_unfaithful_where_it_could_not_be_checked(
        self, tmp_path: Path, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        module = make_module(samples_per_prompt=2)
        module.judge.check = lambda completions, **_: {  # type: ignore[misc]
            "answer": completions,
            "correct": [True] * len(completions),
            "chain": ["unverifiable"] * len(completions),
        }
        make_trainer(EpisodeLogger(tmp_path / "here")).fit(module, data)
        table = read(tmp_path / "here")
        assert table["faithful"] == [None if finished else False for finished in table["finished"]]
        assert None in table["faithful"]

    def test_have_the_same_columns_without_a_filter(
        self, tmp_path: Path, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        make_trainer(EpisodeLogger(tmp_path / "here")).fit(make_module(samples_per_prompt=2), data)
        table = read(tmp_path / "here")
        assert table.keys() == COLUMNS
        assert table["score"] == [None] * 4

    def test_read_as_one_though_an_iteration_has_no_answer_at_all(
        self, tmp_path: Path, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        answers = iter([[None, None], ["3", None]])
        module = make_module(samples_per_prompt=1)
        module.judge.check = lambda **_: {"answer": next(answers), "correct": [False] * 2, "chain": ["wrong"] * 2}
        make_trainer(EpisodeLogger(tmp_path), max_epochs=2).fit(module, data)
        assert read(tmp_path)["answer"] == [None, None, "3", None]


class TestTexts:
    HOSTILE = "<script>alert(1)</script> & </pre>\n\n# x\n"

    def page(self, episodes: Episodes, texts: int = 6) -> str:
        return EpisodeLogger(texts=texts)._page(episodes.records())

    def test_are_escaped_in_tensorboard(
        self, tmp_path: Path, task: Task, make_module: MakeModule, make_trainer: MakeTrainer
    ) -> None:
        rows = [{**row, "prompt": f"{self.HOSTILE}{place}"} for place, row in enumerate(task.train[:4])]
        hostile = Task("toy", rows, task.gold, task.validation, task.test, task.reward, task.check)
        module = make_module(samples_per_prompt=2, sampling=Sampling(max_new_tokens=4))
        module.model.policy.config.max_position_embeddings = 256
        trainer = make_trainer(EpisodeLogger(), logger=TensorBoardLogger(tmp_path, name="", version="ppo"))
        trainer.fit(module, PromptDataModule(hostile, PromptOptions(prompts_per_iteration=2)))
        (text,) = shown(tmp_path / "ppo").values()
        assert "<script>" not in text
        assert "    &lt;script&gt;alert(1)&lt;/script&gt; &amp; &lt;/pre&gt;" in text
        assert "\n    # x" in text  # in a code block, where Markdown does nothing

    def test_responses_are_escaped_line_by_line(self) -> None:
        page = self.page(make_episodes(2, responses=[self.HOSTILE, "fine"]))
        assert "<" not in page
        body = page.split("\n\n", 1)[1]
        assert all(line.startswith("    ") or " · " in line for line in body.split("\n") if line)

    def test_as_many_as_asked_for(self) -> None:
        episodes = make_episodes(5).select(torch.arange(5) < 3, "late")
        page = self.page(episodes, texts=4)
        assert [f"prompt {row}" in page for row in range(5)] == [True, True, True, True, False]
        assert "**dropped** (late)" in page
        assert self.page(episodes, texts=0) == ""

    def test_every_so_many_iterations(
        self, tmp_path: Path, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        logger = TensorBoardLogger(tmp_path, name="", version="ppo")
        callback = EpisodeLogger(texts=1, every_n_iterations=2)
        make_trainer(callback, logger=logger, max_epochs=4).fit(make_module(samples_per_prompt=2), data)
        assert sorted(shown(tmp_path / "ppo")) == [0, 2]


@pytest.mark.parametrize(("name", "value"), [("texts", -1), ("every_n_iterations", 0)])
def test_refuses_options_out_of_range(name: str, value: int) -> None:
    with pytest.raises(UsageError, match=f"{name} = {value}"):
        EpisodeLogger(**{name: value})  # type: ignore[arg-type]
