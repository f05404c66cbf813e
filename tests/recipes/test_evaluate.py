"""Judging without training: a run's checkpoint, and a Hugging Face directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_copies import COPIES
from pyarrow import parquet
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ippo.recipes import commonsense, math

RUN = [
    "--tiny.hidden_size=16",
    "--tiny.layers=1",
    "--tiny.heads=2",
    "--tiny.intermediate_size=32",
    "--tiny.vocab_size=300",
    "--embedded.train_size=32",
    "--embedded.gold_size=8",
    "--embedded.validation_size=4",
    "--embedded.test_size=4",
    "--embedded.max_steps=2",
    "--sft.steps=50",  # a warm start of its own: other tests look at theirs being trained
    "--sft.batch_size=8",
    "--sft.learning_rate=0.02",
    "--data.prompts_per_iteration=4",
    "--ppo.samples_per_prompt=2",
    "--sampling.max_new_tokens=24",
    "--evaluation.samples=3",
    "--evaluation.temperature=0.001",  # so low that chance has no part in the answers
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--filter=none",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "run"
    assert math.main([*RUN, f"--trainer.default_root_dir={directory}"]) == 0
    return directory


@pytest.mark.parametrize("place", ["", "checkpoints/iteration-00000.ckpt"])
def test_a_checkpoint_scores_what_its_run_reported(run: Path, place: str, tmp_path: Path) -> None:
    assert math.main(["evaluate", f"--checkpoint={run / place}", f"--output={tmp_path}"]) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["scores"] == json.loads((run / "summary.json").read_text())["trained"]
    assert found["checkpoint"] == str(run / "checkpoints" / "iteration-00000.ckpt")
    table = parquet.read_table(tmp_path / "answers.parquet").to_pydict()
    assert list(table) == ["prompt", "gold", "response", "finished", "answer", "correct", "chain"]
    assert len(table["prompt"]) == 4 * 3
    assert sum(table["correct"]) / 12 == pytest.approx(found["scores"]["em"])
    assert [chain not in ("wrong", "hacked") for chain in table["chain"]] == table["correct"]


def test_results_go_beside_the_run_and_options_can_be_given_anew(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert math.main(["evaluate", f"--checkpoint={run}", "--evaluation.samples=2"]) == 0
    found = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert (found["scores"]["k"], found["scores"]["n"]) == (2, 4)
    said = capsys.readouterr().out
    assert "4 test problems, 2 answers each" in said
    assert "answers.parquet" in said


def test_any_hugging_face_model(
    shared_policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    shared_policy.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    COPIES["ecqa"](tmp_path / "ecqa")
    config = json.loads((tmp_path / "policy" / "config.json").read_text())
    (tmp_path / "policy" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 512}))
    arguments = [
        "--splits.gold_size=2",
        "--splits.test_size=3",
        "--sampling.max_new_tokens=4",
        "--evaluation.samples=2",
    ]
    places = [f"--policy={tmp_path / 'policy'}", f"--task_path={tmp_path / 'ecqa'}", f"--output={tmp_path / 'out'}"]
    assert commonsense.main(["evaluate", *places, *arguments, "--trainer.accelerator=cpu"]) == 0
    table = parquet.read_table(tmp_path / "out" / "answers.parquet").to_pydict()
    assert table["gold"] == ["B"] * 6
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["checkpoint"] is None


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ([], "there is no checkpoint: give a run's directory or a .ckpt file"),
        (["checkpoints/a.ckpt"], "config.yaml is missing"),
    ],
)
def test_a_checkpoint_that_cannot_be_used(
    made: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in made:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert math.main(["evaluate", f"--checkpoint={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: checkpoint = ")
    assert words in line
