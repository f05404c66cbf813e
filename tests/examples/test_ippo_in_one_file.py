"""I-PPO in one file is the library's I-PPO: the same scores, the same filter, the same training."""

from __future__ import annotations

import ast
import copy
import dataclasses
import importlib.util
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from parts import MakeModule, MakeTrainer, Recorder, Reseed, is_odd, state
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ippo import Episodes, PPOModule, PromptDataModule
from ippo.callbacks import InfluenceFilterCallback
from ippo.data import EmbeddedOptions, Task, columns, embedded_task
from ippo.influence import ExactScorer, Proportional, Uniform, ValidationDirection
from ippo.models import tiny_llama, train_tokenizer
from ippo.recipes.warm_start import warm_start
from ippo.rewards import Judge
from ippo.rollout.sampling import Sampling
from ippo.rollout.sequences import Sequences
from ippo.sft import SFTOptions, demonstration_loss

FILE = Path(__file__).resolve().parents[2] / "examples" / "ippo_in_one_file.py"
SAMPLES = 4


@pytest.fixture(scope="module")
def one_file() -> ModuleType:
    spec = importlib.util.spec_from_file_location(FILE.stem, FILE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[FILE.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def as_in_one_file(one_file: ModuleType, episodes: Episodes) -> Any:
    """The library's episodes in the other layout, in which prompts have columns among the tokens, too."""
    width, mask = episodes.prompt_ids.shape[1], episodes.response_mask
    names = ("old_logprobs", "values", "advantages", "returns")
    tokens = [pad(getattr(episodes, name) * mask, (width, 0)) for name in names]
    texts = one_file.Texts(episodes.input_ids, episodes.attention_mask.bool(), pad(mask, (width, 0)))
    return one_file.Episodes(texts, *tokens, episodes.weights)


@pytest.mark.parametrize("moved", [False, True], ids=["ratios of 1", "ratios that are not 1"])
def test_scores_are_those_of_the_exact_scorer(
    one_file: ModuleType,
    make_module: MakeModule,
    shifted: PPOModule,
    rollout: Episodes,
    task: Task,
    gold: Sequences,
    moved: bool,
) -> None:
    module = shifted if moved else make_module()
    policy = module.model.policy
    expected = ExactScorer("loop").score(
        policy, module.policy_losses, [rollout], ValidationDirection([gold], demonstration_loss)
    )
    solutions = one_file.encode(module.tokenizer, task.gold)
    scores = one_file.influence_scores(policy, as_in_one_file(one_file, rollout), solutions, clip=0.2)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def judge(prompts: Sequence[str], completions: Sequence[str], **_: object) -> dict[str, list[Any]]:
    """A truth that an untrained policy meets every other time."""
    right = [value == 1 for value in is_odd(prompts, completions)]
    return {"answer": completions, "correct": right, "chain": ["faithful" if one else "wrong" for one in right]}


@pytest.mark.parametrize("kind", ["uniform", "paper", "none"])
def test_on_the_same_draws_it_learns_what_the_library_learns(
    one_file: ModuleType,
    make_module: MakeModule,
    make_trainer: MakeTrainer,
    policy: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    task = dataclasses.replace(task, reward=is_odd, check=judge)
    policy.config.max_position_embeddings = 128  # room for the longest response that the file samples
    own, start = copy.deepcopy(policy), state(policy)
    draw, batches = one_file.sample, []

    def sample(policy: Any, tokenizer: Any, rows: list[Any]) -> Any:
        torch.manual_seed(len(batches))  # what Reseed does below: from here on both draw the same numbers
        batches.append(columns(rows[::SAMPLES]))
        return draw(policy, tokenizer, rows)

    monkeypatch.setattr(one_file, "sample", sample)
    settings = one_file.Settings(kind, iterations=3, prompts=4, samples=SAMPLES, minibatch_size=8)
    curve = list(one_file.ippo(own, tokenizer, task, settings))

    class SamePrompts(PromptDataModule):
        def train_dataloader(self) -> DataLoader:
            return DataLoader([batches[self.trainer.current_epoch]], batch_size=None)  # type: ignore[union-attr]

    rates = {"learning_rate": 4e-4, "value_learning_rate": 1e-3, "schedule": "linear", "kl_coef": 0.03}
    module = make_module(policy, is_odd, Sampling(), inner_epochs=2, samples_per_prompt=SAMPLES, **rates)
    module.judge = Judge(judge)
    weight = Proportional() if kind == "paper" else Uniform()
    influence_filter = [] if kind == "none" else [InfluenceFilterCallback(ExactScorer(), weight=weight)]
    trainer = make_trainer(Reseed(), *influence_filter, recorder, max_epochs=3, reload_dataloaders_every_n_epochs=1)
    trainer.fit(module, SamePrompts(task))

    expected = [(one["accuracy/em"], one.get("influence/kept_fraction", 1.0)) for one in recorder.curves]
    torch.testing.assert_close(torch.tensor(curve), torch.tensor(expected))
    assert (min(kept for _, kept in curve) < 1) == (kind != "none")
    way = moved(start, state(module.model.policy))
    assert (moved(start, state(own)) - way).norm() < 1e-3 * way.norm()


def moved(start: dict[str, Tensor], end: dict[str, Tensor]) -> Tensor:
    return torch.cat([(value - start[name]).flatten() for name, value in end.items()])


def test_it_prints_the_accuracy_before_and_after(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = embedded_task(EmbeddedOptions(train_size=64, gold_size=8, validation_size=1, test_size=4, max_steps=2))
    monkeypatch.setattr("ippo.data.embedded.embedded_task", lambda options: small)
    arguments = "--warm_start_steps 20 --iterations 2 --prompts 4 --samples 2 --filter paper --seed 3"
    monkeypatch.setattr(sys, "argv", [str(FILE), *arguments.split()])
    runpy.run_path(str(FILE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["Warm", "Iteration", "Iteration", "Trained:"]
    assert "EM 0." in lines[0]
    assert "EM 0." in lines[-1]


def test_policy_and_warm_start_are_the_recipe_s(one_file: ModuleType, task: Task, tmp_path: Path) -> None:
    texts = [row["prompt"] + row["solution"] for row in task.train]
    torch.manual_seed(0)
    policy, tokenizer = one_file.new_policy(texts)
    torch.manual_seed(0)
    recipes_tokenizer = train_tokenizer(texts)
    recipes_policy = tiny_llama(recipes_tokenizer)
    start = state(policy)
    assert tokenizer.get_vocab() == recipes_tokenizer.get_vocab()
    assert all(torch.equal(value, start[name]) for name, value in state(recipes_policy).items())

    one_file.warm_start(policy, tokenizer, task, one_file.Settings(seed=3, warm_start_steps=20))
    options = SFTOptions(steps=20, batch_size=32, learning_rate=3e-3)
    warm_start(recipes_policy, recipes_tokenizer, task.train, options, 3, "cpu", progress=False, cache=tmp_path)
    way = moved(start, state(recipes_policy))
    assert (moved(start, state(policy)) - way).norm() < 1e-3 * way.norm()


def test_it_is_short_and_needs_no_more_of_the_library_than_the_task() -> None:
    text = FILE.read_text()
    assert len(text.splitlines()) <= 250
    nodes = list(ast.walk(ast.parse(text)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name for name in names if name.startswith("ippo")} == {"ippo.data.embedded"}
    assert not {name for name in names if "lightning" in name}
