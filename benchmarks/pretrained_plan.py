"""What ``benchmarks/pretrained.py`` runs: verifiers × arms × seeds, in one of two sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ippo.experiments.comparison.arms import find
from ippo.experiments.comparison.cells import Cell, Summary

PPO, FILTER, PROBE, PTX, BOTH = ARMS = ("ppo", "ippo_last_block", "ippo_probe", "ppo_ptx", "ippo_ptx")
LABELS = {
    PPO: "PPO",
    FILTER: "default filter",
    PROBE: "filter and probe",
    PTX: "PPO, trained on the gold as well",
    BOTH: "both",
}

COMMON: dict[str, Any] = {
    "task": "gsm_symbolic",
    "layout": "lora",
    "lora.rank": 8,
    "lora.alpha": 16,
    "models.dtype": "float32",
    "sft.learning_rate": 1e-3,
    "ppo.advantage": "rloo",
    "ppo.value_coef": 0,
    "ppo.kl_coef": 0,
    "ppo.inner_epochs": 1,
    "ppo.schedule": "constant",
    "ppo.warmup": 0,
    "ppo.learning_rate": 1e-4,
    "sampling.temperature": 1,
    "evaluation.temperature": 1,
    "evaluation.top_p": 1,
    "evaluation.reward": "true",
    "trainer.limit_val_batches": 0,
}


@dataclass(frozen=True)
class Size:
    """How much is done in a run.

    Args:
        title: of its section on the page.
        hole: of the verifier that has one.
        options: of the recipe, over the common ones.
    """

    title: str
    hole: str
    options: dict[str, Any]


SIZES = {
    "card": Size(
        "On one card",
        "long",
        {
            "splits.gold_size": 256,
            "splits.validation_size": 16,
            "splits.test_size": 256,
            "sft.steps": 234,
            "sft.batch_size": 64,
            "data.prompts_per_iteration": 32,
            "ppo.samples_per_prompt": 8,
            "ppo.minibatch_size": 64,
            "ppo.micro_batch_tokens": 32768,
            "sampling.max_new_tokens": 256,
            "evaluation.samples": 4,
            "trainer.precision": "bf16-mixed",
            "trainer.max_epochs": 20,
        },
    ),
    "cpu": Size(
        "On one thread, much smaller",
        "short",
        {
            "gsm_symbolic.templates": "[10, 58]",
            "splits.gold_size": 64,
            "splits.validation_size": 4,
            "splits.test_size": 32,
            "splits.train_size": 2000,
            "sft.steps": 20,
            "sft.batch_size": 16,
            "data.prompts_per_iteration": 8,
            "ppo.samples_per_prompt": 8,
            "ppo.minibatch_size": 32,
            "ppo.micro_batch_tokens": 2048,
            "ppo.ptx_batch_size": 8,
            "sampling.max_new_tokens": 56,
            "evaluation.samples": 4,
            "trainer.accelerator": "cpu",
            "trainer.precision": "bf16-mixed",
            "float32_matmul_precision": "medium",
            "trainer.max_epochs": 20,
        },
    ),
}


def verifiers(hole: str) -> dict[str, tuple[str, ...]]:
    """By name, what the recipe is told of each."""
    return {
        "hole": ("--verifier.hole", hole),
        "honest": (),
        "correlated": ("--verifier.error", "0.25", "--verifier.error_icc", "0.53"),
    }


@dataclass(frozen=True)
class Plan:
    """All cells of one size.

    Args:
        out: directory of the results of this size.
        size: see :class:`Size`.
        verifiers, arms, seeds: what is crossed.
        options: of the recipe, for every run, over the size's.
    """

    out: Path
    size: Size
    verifiers: dict[str, tuple[str, ...]]
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    options: tuple[str, ...] = ()

    def cell(self, verifier: str, arm: str, seed: int) -> Cell:
        chosen = {**COMMON, **self.size.options}
        words = [word for name, value in chosen.items() for word in (f"--{name}", str(value))]
        return Cell(find(arm), seed, self.out / verifier, (*words, *self.verifiers[verifier], *self.options))

    def cells(self) -> Iterator[tuple[str, str, int]]:
        """The verifier with a hole first, and pairs of one seed together: an interrupted plan leaves whole pairs."""
        for verifier in self.verifiers:
            for seed in self.seeds:
                for arm in self.arms:
                    yield verifier, arm, seed

    def finished(self) -> dict[tuple[str, str, int], Summary]:
        """What is finished, with its place."""
        found = ((place, self.cell(*place).finished()) for place in self.cells())
        return {place: summary for place, summary in found if summary is not None}
