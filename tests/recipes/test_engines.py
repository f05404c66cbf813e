"""Engines of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_recipe import SMALL

from ippo.recipes.engines import build_engine
from ippo.recipes.math import main
from ippo.recipes.parser import build_parser, parse
from ippo.rollout.engines.base import RolloutEngine
from ippo.rollout.engines.compiled import CompiledGenerate
from ippo.rollout.engines.hf import HFGenerate


class Counting(HFGenerate):
    """An engine of the user's own."""

    sampled = 0

    def generate(self, *arguments: Any) -> Any:
        Counting.sampled += 1
        return super().generate(*arguments)


def chosen(*words: str) -> Any:
    return parse(build_parser("recipe", "", []), words)[1].engine


def test_hf_is_the_default(tokenizer: Any) -> None:
    assert type(build_engine(chosen(), tokenizer)) is HFGenerate


def test_compiled_is_a_name(tokenizer: Any) -> None:
    assert type(build_engine(chosen("--engine=compiled"), tokenizer)) is CompiledGenerate


@pytest.mark.parametrize(
    "name", ["", "--engine=hf", "--engine=compiled", f"--engine={HFGenerate.__module__}.HFGenerate"]
)
def test_an_engine_takes_its_options_from_the_command_line(name: str, tokenizer: Any) -> None:
    words = (*([name] if name else []), "--engine.batch_size=3", "--filter.patience=3")
    engine = build_engine(chosen(*words), tokenizer)
    assert type(engine) is (CompiledGenerate if "compiled" in name else HFGenerate)
    assert isinstance(engine, RolloutEngine)
    assert engine.batch_size == 3  # type: ignore[attr-defined]
    assert engine.tokenizer is tokenizer  # type: ignore[attr-defined]


def test_the_recipe_samples_with_an_engine_of_the_user_s_own(tmp_path: Path) -> None:
    Counting.sampled = 0
    words = [f"--engine={__name__}.Counting", "--trainer.max_epochs=1", "--trainer.limit_val_batches=0"]
    assert main([*SMALL, *words, f"--trainer.default_root_dir={tmp_path / 'run'}"]) == 0
    assert Counting.sampled >= 1 + 2 * 2  # one rollout, and two tests of sampled and greedy answers


def test_a_name_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--engine=nonsense"]) == 2
    said = capsys.readouterr().err  # with the classes that happen to be imported
    assert said.startswith("error: engine = 'nonsense': use hf, compiled, vllm, vllm_server")
    assert said.endswith("or a class_path\n")
