from __future__ import annotations

from pathlib import Path

import pytest

from ippo.errors import UsageError
from ippo.recipes.parser import build_parser, explain, parse
from ippo.recipes.presets import preset_files

EMBEDDED = preset_files([], "embedded", "tiny")


def test_the_command_line_beats_a_file_and_a_file_beats_the_preset(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("ppo:\n  gamma: 0.5\n  lam: 0.5\n")
    parser = build_parser("recipe", "description", EMBEDDED)
    _, preset = parse(parser, [])
    _, options = parse(parser, [f"--config={tmp_path / 'mine.yaml'}", "--ppo.lam=0.25"])
    assert (options.ppo.gamma, options.ppo.lam) == (0.5, 0.25)
    assert options.ppo.kl_coef == preset.ppo.kl_coef


@pytest.mark.parametrize("message", ["", "anything", 'Parser key "a.b":\n  odd', "line\nline"])
def test_any_message_becomes_one_line(message: str) -> None:
    error = explain(message)
    assert isinstance(error, UsageError)
    assert "\n" not in str(error)
