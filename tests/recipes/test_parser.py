from __future__ import annotations

from pathlib import Path

import pytest

from ippo.errors import UsageError
from ippo.recipes.parser import CONFIGS, build_parser, explain, parse

PRESETS = sorted(path.name for path in CONFIGS.glob("*.yaml"))


def test_there_is_a_preset() -> None:
    assert "embedded.yaml" in PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_parses_into_checked_options(preset: str) -> None:
    _, options = parse(build_parser("recipe", "description", preset), [])
    assert options.ppo.minibatch_size >= 1
    assert options.trainer.max_epochs >= 1
    assert options.trainer.log_every_n_steps == 1  # an iteration is one step


@pytest.mark.parametrize("preset", PRESETS)
def test_a_saved_configuration_says_the_same(preset: str, tmp_path: Path) -> None:
    parser = build_parser("recipe", "description", preset)
    config, options = parse(parser, ["--ppo.gamma=0.5", "--filter=paper"])
    parser.save(config, tmp_path / "config.yaml")
    _, again = parse(build_parser("recipe", "description", preset), [f"--config={tmp_path / 'config.yaml'}"])
    for group in ("ppo", "sampling", "evaluation", "sft", "embedded", "tiny", "data", "filter", "seed_everything"):
        assert again[group] == options[group], group


def test_the_command_line_beats_a_file_and_a_file_beats_the_preset(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("ppo:\n  gamma: 0.5\n  lam: 0.5\n")
    parser = build_parser("recipe", "description", "embedded.yaml")
    _, preset = parse(parser, [])
    _, options = parse(parser, [f"--config={tmp_path / 'mine.yaml'}", "--ppo.lam=0.25"])
    assert (options.ppo.gamma, options.ppo.lam) == (0.5, 0.25)
    assert options.ppo.kl_coef == preset.ppo.kl_coef


@pytest.mark.parametrize("message", ["", "anything", 'Parser key "a.b":\n  odd', "line\nline"])
def test_any_message_becomes_one_line(message: str) -> None:
    error = explain(message)
    assert isinstance(error, UsageError)
    assert "\n" not in str(error)
