"""``python -m ippo.recipes.math export``: a run's trained policy as a plain Hugging Face directory."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L

from ippo.errors import require
from ippo.models import export as write
from ippo.models.checkpoints import weights_of
from ippo.recipes.assembly import build_module, load
from ippo.recipes.evaluate import find_checkpoint, started_models
from ippo.recipes.parser import parse, parser_of
from ippo.recipes.recipe import Recipe
from ippo.recipes.report import print_export
from ippo.recipes.screen import console, quiet


def export(recipe: Recipe, arguments: Sequence[str]) -> None:
    """Load a checkpoint over the models that its run began with, and write the policy out.

    Raises:
        UsageError: if an argument is wrong, or the run's start cannot be found.
    """
    parser = parser_of(recipe, "export", arguments)
    _, options = parse(parser, arguments)
    for name in ("checkpoint", "output"):
        require(options[name] is not None, name, None, f"say --{name} DIRECTORY")
    checkpoint = find_checkpoint(options.checkpoint)
    parser.default_config_files = [*parser.default_config_files, str(checkpoint.parent.parent / "config.yaml")]
    _, options = parse(parser, arguments)
    quiet()
    L.seed_everything(options.seed_everything, verbose=False)
    task, policy, tokenizer = load(options, recipe.tasks)
    models = started_models(checkpoint, policy, tokenizer, task, options)
    module = build_module(models, tokenizer, task, options)
    module.load_state_dict(weights_of(checkpoint))
    folder = write(models, tokenizer, options.output)
    print_export(folder, options.sampling.max_new_tokens, options.chat, console)
