"""``--help``: what most runs need, with examples, on one screen; ``--help all`` is every option."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

import docstring_parser

from ippo.recipes.recipe import Recipe

_EXAMPLES = {
    "train": (
        ("", "the embedded task, about three minutes"),
        ("--task gsm8k --policy Qwen/Qwen2.5-0.5B", "a task and a model of the hub"),
        ("--task my_file:my_task --reward my_file:reward", "your own, from the working directory"),
        ("--task file --task_path problems.csv --columns.prompt question", "your rows, without code"),
        ("--filter none", "plain PPO, to compare with"),
        ("--resume --trainer.default_root_dir runs/NAME", "go on with a run"),
    ),
    "evaluate": (
        ("--checkpoint runs/NAME", "a run's newest checkpoint"),
        ("--policy Qwen/Qwen2.5-0.5B --task gsm8k", "any model, untouched"),
        ("--checkpoint runs/NAME --evaluation.seed 1", "other draws, for an interval"),
    ),
    "export": (("--checkpoint runs/NAME --output trained", "a plain Hugging Face directory"),),
}
_SHOWN: dict[str, dict[str, dict[str, str]]] = {
    "train": {
        "what to learn": {
            "task": "a name, file (your rows), or module:function",
            "task_path": "a local copy of the data set: file or folder",
            "reward": "module:function in place of the task's own",
            "policy": "tiny, a hub id, a directory, a .gguf file",
            "layout": "separate, shared or lora: what shares memory",
            "chat": "put prompts into the tokenizer's chat template",
        },
        "how": {
            "filter": "none, last_block, probe, paper, or two more",
            "ppo.learning_rate": "peak rate of the policy",
            "ppo.kl_coef": "price of a nat away from the reference policy",
            "ppo.samples_per_prompt": "responses to each prompt",
            "ppo.advantage": "gae, group_relative (GRPO) or rloo",
            "sft.steps": "warm start, in optimizer steps; 0 for none",
        },
        "how much": {
            "trainer.max_epochs": "iterations: an epoch is one",
            "data.prompts_per_iteration": "prompts in one iteration",
            "ppo.minibatch_size": "episodes in one optimizer step",
            "ppo.micro_batch_size": "episodes at a time: bounds memory alone",
            "sampling.max_new_tokens": "a response that is longer is cut, and wrong",
            "evaluation.samples": "answers to each problem that is judged",
        },
        "where and which run": {
            "trainer.accelerator": "cpu, gpu or auto",
            "trainer.devices": "how many of them",
            "trainer.precision": "32-true or bf16-mixed",
            "trainer.default_root_dir": "the run's directory; runs/NAME-TIME by itself",
            "config": "a YAML file of options, as a run's config.yaml",
            "resume": "go on with the run in that directory",
            "seed_everything": "weights, order and sampling",
        },
    },
    "evaluate": {
        "what": {
            "checkpoint": "a run's directory, or one of its checkpoints",
            "policy": "or any model: a hub id or a directory",
            "task": "as at train; of a run, its own",
            "task_path": "a local copy of the data set: file or folder",
            "output": "where answers.parquet and evaluation.json go",
        },
        "how": {
            "evaluation.samples": "answers to each problem",
            "evaluation.temperature": "of the draws",
            "evaluation.seed": "of the draws: the same number, the same figure",
            "sampling.max_new_tokens": "a response that is longer is cut, and wrong",
            "data.evaluation_batch_size": "problems at a time: bounds memory",
            "trainer.accelerator": "cpu, gpu or auto",
        },
    },
    "export": {
        "what": {
            "checkpoint": "a run's directory, or one of its checkpoints",
            "output": "the directory to write",
            "policy": "where the run's model is now, if it was moved",
        },
    },
}
_WIDTH = 80
_NAME = 28
DOES = {
    "train": "Warm start, influence-filtered PPO, and a table of what it brought.",
    "evaluate": "Judge a run's checkpoint, or any Hugging Face model, without training.",
    "export": "Write a run's trained policy as a plain Hugging Face directory.",
}
"""What each word of a recipe's command line does."""


def asked(arguments: Sequence[str]) -> str | None:
    """``"short"`` or ``"all"`` where a command line asks for help.

    Example:
        >>> asked(["--task", "math", "--help"]), asked(["-h", "all"]), asked(["--filter.help"])
        ('short', 'all', None)
    """
    for place, word in enumerate(arguments):
        if word in ("-h", "--help", "--help=all"):
            return "all" if "all" in (word.partition("=")[2], *arguments[place + 1 : place + 2]) else "short"
    return None


def short(recipe: Recipe, word: str) -> str:
    """At most sixty lines of eighty columns.

    Args:
        recipe: whose command line it is.
        word: ``train``, ``evaluate`` or ``export``.
    """
    command = recipe.command(word)
    lines = [f"usage: {command} [--OPTION VALUE ...]", "", DOES[word], "", "examples:"]
    for options, meaning in _EXAMPLES[word]:
        lines += [f"  # {meaning}", *_on_a_screen(f"  {command} {options}".rstrip())]
    for title, texts in _SHOWN[word].items():
        lines += ["", f"{title}:"]
        lines += [f"  --{name:<{_NAME}}{text}" for name, text in texts.items()]
    return "\n".join([*lines, "", "--help all lists every option. Lightning's own are --trainer.NAME."])


def _on_a_screen(command: str) -> list[str]:
    """A command in lines that a shell reads as one."""
    if len(command) <= _WIDTH:
        return [command]
    place = command.rindex(" --", 0, _WIDTH - 1)
    return [f"{command[:place]} \\", f"     {command[place:]}"]


def name_each(parser: argparse.ArgumentParser, group: str, options: Any) -> None:
    """Give every option of a group its text, also those that share one in the docstring, in words without markup."""
    texts: dict[str, str] = {}
    for parameter in docstring_parser.parse(options.__doc__ or "").params:
        texts |= {name.strip(): parameter.description or "" for name in parameter.arg_name.split(",")}
    for action in parser._actions:
        if action.dest.startswith(f"{group}."):
            found = texts.get(action.dest.removeprefix(f"{group}."), action.help or "")
            action.help = plain(found).replace("%", "%%")
    for titled in parser._action_groups:
        titled.title, titled.description = plain(titled.title or ""), plain(titled.description or "")


def plain(text: str) -> str:
    """A docstring's text as a shell shows it.

    Example:
        >>> plain("``0`` is none, see :func:`ippo.functional.policy_loss`")
        '0 is none, see ippo.functional.policy_loss'
    """
    return re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("``", "").replace("`", "")
