"""The command line that all recipes share, by LightningCLI's conventions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Union, get_args

import lightning as L
from jsonargparse import ActionConfigFile, ActionYesNo, ArgumentError, Namespace
from lightning.pytorch.cli import LightningArgumentParser

from ippo.callbacks import InfluenceFilterCallback, NumericGuard, RewardHackingMonitor
from ippo.data import ColumnOptions, EmbeddedOptions, SplitOptions, VerifierOptions
from ippo.data.gsm_symbolic import GSMSymbolicOptions
from ippo.data.prompts import PromptOptions
from ippo.errors import UsageError
from ippo.models import LayoutName, LoraOptions, ModelOptions, TinyOptions
from ippo.ppo.options import EvaluationOptions, PPOOptions
from ippo.recipes.engines import Engine
from ippo.recipes.explain import explain, located, require_readable
from ippo.recipes.filters import FilterName
from ippo.recipes.help import DOES, name_each
from ippo.recipes.named import spelt_out
from ippo.recipes.presets import names, preset_files
from ippo.recipes.products import Products
from ippo.recipes.recipe import Recipe
from ippo.rollout.sampling import Sampling
from ippo.sft import SFTOptions


def build_parser(program: str, description: str, presets: Sequence[Path]) -> LightningArgumentParser:
    """Short options first, then one group for each room of the house, then Lightning's own trainer options.

    Args:
        program: what the usage line calls the recipe.
        description: what it does.
        presets: files whose values hold unless others are given, the later over the earlier.
    """
    parser = LightningArgumentParser(
        prog=program, description=description, default_config_files=list(map(str, presets)), exit_on_error=False
    )
    parser.add_argument(
        "--config", action=ActionConfigFile, help="A YAML file of options; what it leaves out keeps its default."
    )
    parser.add_argument("--seed_everything", type=int, default=0, help="Seed of the run: weights, order, sampling.")
    parser.add_argument(
        "--preset", type=str | None, default=None, help="Task and policy in one word: TASK_POLICY, as gsm8k_rho1b."
    )
    parser.add_argument(
        "--task",
        type=str,
        default="embedded",
        help="Which problems to learn: a name, file (your rows), or module:function of yours that returns a Task.",
    )
    parser.add_argument(
        "--reward",
        type=str | None,
        default=None,
        help="module:function of yours in place of the task's reward: reward(prompts, completions, **columns).",
    )
    parser.add_argument(
        "--task_path", type=str | None, default=None, help="A local copy of the task's data set: file or directory."
    )
    policies = ", ".join(names("policies"))
    parser.add_argument(
        "--policy", type=str, default="tiny", help=f"{policies}, a local directory, a .gguf file, or a hub id."
    )
    parser.add_argument("--tokenizer", type=str | None, default=None, help="Directory or hub id of another tokenizer.")
    parser.add_argument(
        "--layout", type=LayoutName, default="separate", help="How policy, value and reference share memory."
    )
    parser.add_argument(
        "--chat", action=ActionYesNo, default=False, help="Put prompts into the tokenizer's chat template."
    )
    parser.add_argument(
        "--engine",
        type=Engine,
        default="hf",
        help="What samples: hf, compiled, vllm, vllm_server, or the class_path of a RolloutEngine; its options are "
        "--engine.batch_size and so on.",
    )
    parser.add_argument(
        "--filter",
        type=Union[FilterName, InfluenceFilterCallback],
        default="last_block",
        help="last_block, uniform, paper, tempered, probe, none, or a class_path with init_args; --filter.keep and the "
        "like change it.",
    )
    parser.add_argument(
        "--float32_matmul_precision",
        type=Products,
        default="auto",
        help="torch's option of that name: high computes float32 products in TF32 on GPUs from Ampere on, scores "
        "included, several times faster and with ten bits of mantissa. auto: high where there is TF32, else highest.",
    )
    parser.add_argument(
        "--resume", action=ActionYesNo, default=False, help="Go on from the newest checkpoint of the run directory."
    )
    parser.add_argument(
        "--trust_remote_code", action=ActionYesNo, default=False, help="Run code that comes with a checkpoint."
    )
    for name, options in (
        ("data", PromptOptions),
        ("splits", SplitOptions),
        ("columns", ColumnOptions),
        ("verifier", VerifierOptions),
        ("gsm_symbolic", GSMSymbolicOptions),
        ("models", ModelOptions),
        ("lora", LoraOptions),
        ("ppo", PPOOptions),
        ("sampling", Sampling),
        ("evaluation", EvaluationOptions),
        ("sft", SFTOptions),
        ("guard", NumericGuard),
        ("monitor", RewardHackingMonitor),
        ("embedded", EmbeddedOptions),
        ("tiny", TinyOptions),
    ):
        parser.add_class_arguments(options, name)
        name_each(parser, name, options)
    parser.add_lightning_class_args(L.Trainer, "trainer")
    name_each(parser, "trainer", L.Trainer.__init__)
    take_whole_numbers_first(parser)
    return parser


def take_whole_numbers_first(parser: LightningArgumentParser) -> None:
    """``--trainer.limit_test_batches 1`` is one batch, and 1.0 is all of them.

    Which of the two ``Optional[Union[int, float]]`` names first hangs on what was imported before, since typing keeps
    one object for both orders.
    """
    for action in parser._actions:
        choices = get_args(getattr(action, "_typehint", None))
        if {int, float} <= {*choices}:
            action._typehint = Union[tuple(sorted(choices, key=lambda one: one is not int))]  # type: ignore[attr-defined]


def parser_of(recipe: Recipe, word: str, arguments: Sequence[str]) -> LightningArgumentParser:
    """The parser of one of a recipe's words, with the presets that the command line names.

    Args:
        recipe: whose command line it is.
        word: ``train``, ``evaluate`` or ``export``.
        arguments: what follows the word.
    """
    presets = preset_files(arguments, recipe.tasks[0], recipe.policy)
    parser = build_parser(recipe.command(word), DOES[word], presets)
    if word != "train":
        checkpoint, output = "A run's directory, or one of its checkpoints.", "The directory to write."
        parser.add_argument("--checkpoint", type=str | None, default=None, help=checkpoint)
        parser.add_argument("--output", type=str | None, default=None, help=output)
    return parser


def parse(parser: LightningArgumentParser, arguments: Sequence[str]) -> tuple[Namespace, Namespace]:
    """The options as written, for ``config.yaml``, and as objects, each checked.

    Raises:
        UsageError: if one is unknown or out of range.
    """
    require_readable(arguments)
    try:
        config = parser.parse_args(spelt_out(parser, arguments))
        return config, parser.instantiate(config)
    except UsageError as error:
        raise located(error, arguments) from error
    except (ArgumentError, TypeError, ValueError) as error:
        raise located(explain(str(error), options_of(parser)), arguments) from error


def options_of(parser: LightningArgumentParser) -> list[str]:
    """The names of all options, without their dashes."""
    return [name[2:] for action in parser._actions for name in action.option_strings if name.startswith("--")]


def in_writing(parser: LightningArgumentParser, config: Namespace) -> str:
    """All options, for the file that repeats the run: a new one, in a directory of its own."""
    written = config.clone()
    written.resume, written.trainer.default_root_dir = False, None
    written.pop("config", None)
    return parser.dump(written, skip_unset=False)  # an option that is set to null may have a default that is not
