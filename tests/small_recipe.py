"""Options that make a run of the recipe a matter of a second or two, and what such a run says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SMALL = [
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
    "--sft.steps=60",
    "--sft.batch_size=8",
    "--sft.learning_rate=0.02",
    "--data.prompts_per_iteration=4",
    "--ppo.samples_per_prompt=2",
    "--ppo.minibatch_size=4",
    "--sampling.max_new_tokens=24",
    "--evaluation.samples=2",
    "--trainer.max_epochs=2",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.accelerator=cpu",
]


def summary(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "summary.json").read_text())


def numbers(directory: Path) -> dict[str, Any]:
    """A run's results without the seconds they took."""
    found = summary(directory)
    for iteration in found["iterations"]:
        del iteration["seconds"], iteration["speed"]
    return found
