from __future__ import annotations

from pathlib import Path
from typing import Union

import pytest
import torch
from lightning.pytorch.cli import LightningArgumentParser
from small_recipe import SMALL

from ippo.callbacks import InfluenceFilterCallback
from ippo.errors import UsageError
from ippo.influence import ExactScorer, PositiveProbe, PositiveScore, Proportional, RandomMatched, TracInScorer, Uniform
from ippo.recipes.explain import explain
from ippo.recipes.filters import build_filter
from ippo.recipes.math import main
from ippo.recipes.parser import build_parser, parse, take_whole_numbers_first
from ippo.recipes.presets import preset_files

EMBEDDED = preset_files([], "embedded", "tiny")


def test_the_command_line_beats_a_file_and_a_file_beats_the_preset(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("ppo:\n  gamma: 0.5\n  lam: 0.5\n")
    parser = build_parser("recipe", "description", EMBEDDED)
    _, preset = parse(parser, [])
    _, options = parse(parser, [f"--config={tmp_path / 'mine.yaml'}", "--ppo.lam=0.25"])
    assert (options.ppo.gamma, options.ppo.lam) == (0.5, 0.25)
    assert options.ppo.kl_coef == preset.ppo.kl_coef


def test_one_is_a_number_of_batches_whatever_typing_names_first() -> None:
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_argument("--limit", type=Union[float, int, None])
    take_whole_numbers_first(parser)
    found = [parser.parse_args([f"--limit={text}"]).limit for text in ("1", "1.0", "0.5", "null")]
    assert list(map(repr, found)) == ["1", "1.0", "0.5", "None"]


@pytest.mark.parametrize("message", ["", "anything", 'Parser key "a.b":\n  odd', "line\nline", "<class 'int'>"])
def test_any_message_becomes_one_line(message: str) -> None:
    error = explain(message)
    assert isinstance(error, UsageError)
    assert "\n" not in str(error)


def chosen(*words: str, before: Path | None = None) -> InfluenceFilterCallback:
    """The filter of a command line; ``before`` is the ``config.yaml`` of a run that goes on."""
    presets = EMBEDDED if before is None else [*EMBEDDED, before]
    found = build_filter(parse(build_parser("recipe", "", presets), words)[1].filter)
    assert found is not None
    return found


class TestFilter:
    def test_the_default_is_uniform_weights_and_the_last_block(self) -> None:
        found = chosen()
        assert isinstance(found.scorer, ExactScorer)
        assert found.scorer.parameters == 1
        assert isinstance(found.keep, PositiveScore)
        assert isinstance(found.weight, Uniform)

    def test_its_options_change_the_default_and_leave_the_rest_of_it(self) -> None:
        found = chosen("--filter.dry_run=true", "--filter.keep=RandomMatched", "--filter.scorer.parameters", "2")
        assert found.dry_run
        assert isinstance(found.keep, RandomMatched)
        assert isinstance(found.weight, Uniform)
        assert found.scorer.parameters == 2
        other = chosen("--filter.scorer", "TracInScorer", "--filter.scorer.snapshots", "5")
        assert isinstance(other.scorer, TracInScorer)
        assert other.scorer.parameters == 1

    def test_its_options_change_a_named_one(self) -> None:
        found = chosen("--filter", "paper", "--filter.dry_run", "true", "--filter.weight.temper", "0.5")
        assert found.dry_run
        assert found.scorer.parameters is None
        assert isinstance(found.weight, Proportional)
        assert found.weight.temper == 0.5

    def test_its_options_change_one_that_a_file_names(self, tmp_path: Path) -> None:
        (tmp_path / "mine.yaml").write_text("filter: paper\n")
        found = chosen("--filter.dry_run", "true", f"--config={tmp_path / 'mine.yaml'}")
        assert found.dry_run
        assert isinstance(found.weight, Proportional)

    @pytest.mark.parametrize("name", ["last_block", "uniform", "paper", "tempered", "probe"])
    def test_a_name_means_the_same_in_a_file_and_on_the_command_line(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "mine.yaml").write_text(f"filter: {name}\n")
        for found in (chosen(f"--filter={name}"), chosen(f"--config={tmp_path / 'mine.yaml'}")):
            assert found.scorer.parameters == (1 if name in ("last_block", "probe") else None)
            assert isinstance(found.weight, Uniform if name in ("last_block", "uniform", "probe") else Proportional)
            assert getattr(found.weight, "min_effective", None) == (0.5 if name == "tempered" else None)
            assert isinstance(found.keep, PositiveProbe if name == "probe" else PositiveScore)

    @pytest.mark.parametrize("name", [[], ["--filter=probe"]], ids=["by default", "named"])
    def test_a_printed_configuration_has_the_changes_and_runs_as_it_says(
        self, name: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        direction = ["--filter.direction=ReturnDirection", "--filter.direction.on=validation"]
        with pytest.raises(SystemExit, match="0"):
            main([*name, *direction, "--filter.min_survival=0.3", "--print_config"])
        (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
        parser = build_parser("recipe", "description", EMBEDDED)
        _, options = parse(parser, [f"--config={tmp_path / 'mine.yaml'}"])
        assert options.filter.min_survival == 0.3
        assert (options.filter.direction.on, options.filter.direction.judged_by) == ("validation", "reward")

    def test_a_run_goes_on_with_its_own_unless_another_is_named(self, tmp_path: Path) -> None:
        parser = build_parser("recipe", "", EMBEDDED)
        parser.save(parse(parser, ["--filter=uniform", "--filter.patience=7"])[0], str(tmp_path / "config.yaml"))
        same = chosen(before=tmp_path / "config.yaml")
        assert (same.scorer.parameters, same.survival.patience) == (None, 7)
        changed = chosen("--filter.on_empty=stop", before=tmp_path / "config.yaml")
        assert (changed.scorer.parameters, changed.survival.patience, changed.on_empty) == (None, 7, "stop")
        other = chosen("--filter=paper", before=tmp_path / "config.yaml")
        assert isinstance(other.weight, Proportional)

    def test_what_it_has_not_is_told_by_name(self) -> None:
        with pytest.raises(UsageError, match=r"filter\.nonsense = '3': .* see --filter\.help"):
            chosen("--filter.nonsense", "3")
        with pytest.raises(UsageError, match="last_block"):
            chosen("--filter", "nonsense")


def test_float32_products_are_exact_on_a_cpu_unless_asked_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_float32_matmul_precision()
    words = [
        "--trainer.max_epochs=0",
        "--float32_matmul_precision=high",
        f"--trainer.default_root_dir={tmp_path / 'r'}",
    ]
    try:
        assert main([*SMALL, *words]) == 0
        assert torch.get_float32_matmul_precision() == "high"
        assert "Float32 products: high" in " ".join(capsys.readouterr().out.split())
    finally:
        torch.set_float32_matmul_precision(before)
    assert before == "highest"
