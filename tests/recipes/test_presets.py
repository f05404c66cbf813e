"""Every file of options, and every recipe from end to end: hub schemas x the five architecture families, all tiny."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from hub_copies import COPIES, write_lines
from transformers import AutoConfig, AutoModelForCausalLM

from ippo.experiments.comparison.arms import FOLDER, known
from ippo.models import train_tokenizer
from ippo.recipes import commonsense, math, physics
from ippo.recipes.parser import build_parser, parse
from ippo.recipes.presets import CONFIGS, names, policy_id, preset_files
from ippo.recipes.tasks import load_task

RECIPES = {"olympiadbench": physics.main, "ecqa": commonsense.main}  # the others are mathematics
_LLAMA: dict[str, Any] = {"model_type": "llama", "num_key_value_heads": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "rho1b": {**_LLAMA, "rms_norm_eps": 1e-5},
    "gemma2_2b": {"model_type": "gemma2", "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 64},
    "qwen25_3b": {"model_type": "qwen2", "num_key_value_heads": 1, "tie_word_embeddings": True},
    "phi3_4b": {"model_type": "phi3", "num_key_value_heads": 2, "sliding_window": 64},
    "llama3_8b": {**_LLAMA, "rope_theta": 500_000.0},
}
SMALL = [
    "--filter.class_path=ippo.callbacks.InfluenceFilterCallback",
    "--filter.init_args.on_empty=keep_all",  # untrained, they are right about nothing
    "--filter.init_args.min_survival=0",
    "--splits.gold_size=2",
    "--splits.validation_size=1",
    "--splits.test_size=2",
    "--sft.steps=1",
    "--sft.batch_size=2",
    "--data.prompts_per_iteration=2",
    "--ppo.samples_per_prompt=2",
    "--ppo.inner_epochs=1",
    "--sampling.max_new_tokens=8",
    "--evaluation.samples=2",
    "--trainer.max_epochs=1",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_checkpointing=false",
]


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All data sets, as local files."""
    root = tmp_path_factory.mktemp("copies")
    for name, write in COPIES.items():
        write(root / name)
    return root


@pytest.fixture(scope="module")
def policies(copies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random policy of each family, as a local Hugging Face directory."""
    root = tmp_path_factory.mktemp("policies")
    _, options = parse(build_parser("recipe", "", []), SMALL)
    tasks = [load_task(name, str(copies / name), options.splits) for name in COPIES]
    tokenizer = train_tokenizer([row["prompt"] + row["solution"] for task in tasks for row in task.train], 400)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
        "vocab_size": 448,
    }  # as real ones: more than tokens
    torch.manual_seed(0)
    for name, family in FAMILIES.items():
        config = AutoConfig.for_model(**{**shape, **tokens, "max_position_embeddings": 512, **family})
        AutoModelForCausalLM.from_config(config).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", COPIES)
def test_every_preset_runs_from_end_to_end(
    task: str, family: str, copies: Path, policies: Path, tmp_path: Path
) -> None:
    arguments = [
        f"--preset={task}_{family}",
        f"--task_path={copies / task}",
        f"--policy={policies / family}",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    assert RECIPES.get(task, math.main)([*arguments, *SMALL]) == 0
    found = json.loads((tmp_path / "summary.json").read_text())
    shares = {"em", "em_greedy", "mv", "pass_at_k", "false_positive", "unverifiable", "hacked"}
    assert found["trained"].keys() == {*shares, "k", "n"}
    assert (found["trained"]["n"], len(found["iterations"])) == (2, 1)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["ppo"]["kl_estimator"] == "k3"  # the family's file and pretrained.yaml do hold
    table = datasets.Dataset.from_parquet(str(tmp_path / "episodes" / "*.parquet"), cache_dir=str(tmp_path / "cache"))
    assert len(table) == 4
    assert all(prompt.startswith("[") and prompt.endswith("\n\nSolution:") for prompt in table["prompt"])


@pytest.mark.parametrize("task", names("tasks"))
@pytest.mark.parametrize("policy", [*names("policies"), "some/hub-id"])
def test_every_pair_of_task_and_policy_parses_into_checked_options(task: str, policy: str, tmp_path: Path) -> None:
    arguments = [f"--task={task}", f"--policy={policy}"]
    parser = build_parser("recipe", "description", preset_files(arguments, "embedded", "tiny"))
    config, options = parse(parser, arguments)
    assert options.task == task
    assert options.ppo.minibatch_size >= 1
    assert options.trainer.max_epochs >= 1
    assert options.trainer.log_every_n_steps == 1  # an iteration is one step
    parser.save(config, tmp_path / "config.yaml")
    _, again = parse(build_parser("recipe", "description", []), [f"--config={tmp_path / 'config.yaml'}"])
    for group in (
        "ppo",
        "sampling",
        "evaluation",
        "sft",
        "embedded",
        "tiny",
        "data",
        "splits",
        "models",
        "lora",
        "filter",
    ):
        assert again[group] == options[group], group


def test_every_file_of_options_is_some_task_s_policy_s_or_arm_s() -> None:
    found = {str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml")}
    tasks = {f"tasks/{name}.yaml" for name in (*COPIES, "embedded", "gsm_symbolic")}
    policies = {f"policies/{name}.yaml" for name in (*FAMILIES, "tiny", "smollm2")}
    assert found == {"pretrained.yaml", *tasks, *policies}
    assert {path.stem for path in FOLDER.rglob("*")} == set(known())  # test_compare.py trains each of them


def test_a_preset_is_its_task_and_its_policy() -> None:
    def options(*arguments: str) -> Any:
        return parse(build_parser("recipe", "", preset_files(arguments, "embedded", "tiny")), arguments)[1]

    preset, parts = options("--preset=math_llama3_8b"), options("--task=math", "--policy=llama3_8b")
    assert policy_id(preset.policy) == policy_id(parts.policy) == "meta-llama/Meta-Llama-3-8B"
    for group in ("task", "layout", "ppo", "sampling", "evaluation", "sft", "splits"):
        assert preset[group] == parts[group]
    assert preset.layout == "lora"
    assert options("--preset=olympiadbench_rho1b").data.prompts_per_iteration == 32  # the task's, not the general one


def test_a_file_of_the_user_s_names_task_and_policy_too(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: ecqa\npolicy: phi3_4b\n")
    files = preset_files([f"--config={tmp_path / 'mine.yaml'}"], "embedded", "tiny")
    assert [path.stem for path in files] == ["pretrained", "ecqa", "phi3_4b"]
    files = preset_files(["--task", "math", "--config", str(tmp_path / "mine.yaml")], "embedded", "tiny")
    assert [path.stem for path in files] == ["pretrained", "math", "phi3_4b"]


@pytest.mark.parametrize("policy", ["../tasks/embedded", "/tmp/x", "tasks/embedded"])
def test_a_policy_that_is_a_path_names_no_file_of_options(policy: str) -> None:
    assert [path.stem for path in preset_files([f"--policy={policy}"], "ecqa", "tiny")] == ["pretrained", "ecqa"]
    assert policy_id(policy) == policy


def test_prompts_longer_than_the_context_are_refused_or_dropped_and_counted(
    copies: Path, policies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": f"Is {n}" + " very" * 600 * (n % 5 == 0) + " much?", "answer": f"#### {n}"} for n in range(20)]
    write_lines(tmp_path / "train.jsonl", rows)
    arguments = [f"--policy={policies / 'rho1b'}", "--task=gsm8k", f"--task_path={tmp_path}", *SMALL]
    assert math.main([*arguments, f"--trainer.default_root_dir={tmp_path / 'refused'}"]) == 2
    assert "--splits.too_long drop" in capsys.readouterr().err
    sizes = ["--splits.too_long=drop", "--splits.validation_size=6", "--splits.test_size=6"]
    assert math.main([*arguments, *sizes, f"--trainer.default_root_dir={tmp_path / 'dropped'}"]) == 0
    said = capsys.readouterr().out
    lost = sum(int(line.split(": ")[1].split()[0]) for line in said.splitlines() if line.startswith("Dropped from"))
    assert lost == 4
