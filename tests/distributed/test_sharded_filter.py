"""The filter in a training whose models ranks hold in parts: it ends where one process does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from launch import RANKS, on_ranks
from sharded_models import odd
from training import ITERATIONS, PAIRS, ByPlace, Train, assert_same, both, distance

from ippo.callbacks import InfluenceFilterCallback
from ippo.data import Task
from ippo.errors import UsageError
from ippo.influence import (
    AdamPreconditioned,
    BufferDirection,
    ExactScorer,
    Proportional,
    RandomProjectionScorer,
    TopFraction,
    TracInScorer,
    Uniform,
)
from ippo.models import LayoutName
from ippo.ppo.preferences import PreferenceDirection

FREE: dict[str, Any] = {"min_survival": 0.0}
GENTLE = {"learning_rate": 1e-4, "value_learning_rate": 1e-4, "inner_epochs": 1}


def test_scores_directions_and_weights_after_three_iterations(tmp_path: Path, train: Train, task: Task) -> None:
    filters = InfluenceFilterCallback
    makers: list[Callable[[], L.Callback]] = [
        lambda: filters(**FREE),
        lambda: filters.paper(weight=Proportional(), **FREE),
        lambda: filters.paper(direction=BufferDirection(leave_one_out=True), keep=TopFraction(0.3), **FREE),
        lambda: filters.paper(direction=AdamPreconditioned(eps=1e-4), keep=TopFraction(0.5), weight=Uniform(), **FREE),
        lambda: filters.paper(scorer=TracInScorer(snapshots=2), keep=TopFraction(0.5), **FREE),
        lambda: filters.paper(scorer=RandomProjectionScorer(rank=8), direction=BufferDirection(True), **FREE),
        lambda: filters(direction_every_n_batches=2, **FREE),
        lambda: filters.paper(direction=PreferenceDirection(PAIRS), keep=TopFraction(0.5), **FREE),
        lambda: filters.paper(scorer=ByPlace(task, (10, 0)), weight=Uniform(), **FREE),
    ]
    for one, rank in both(train, tmp_path, *makers, sharded=True, **GENTLE):
        assert_same(rank, one, tolerance=1e-5)


@pytest.mark.parametrize(
    ("name", "layout"), [("llama", "separate"), ("llama", "lora"), ("gemma2", "shared"), ("gpt2", "separate")]
)
def test_other_models_and_layouts(tmp_path: Path, train: Train, tokenizer: Any, name: str, layout: LayoutName) -> None:
    long = {"n_positions": 64} if name == "gpt2" else {"max_position_embeddings": 64}
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    policy = odd(name, tied=name != "llama", vocab_size=len(tokenizer), **long, **ends)
    makers = [partial(InfluenceFilterCallback, **FREE)]
    for one, rank in both(train, tmp_path, *makers, sharded=True, policy=policy, layout=layout, **GENTLE):
        assert_same(without_key_biases(rank), without_key_biases(one), tolerance=1e-5)


def without_key_biases(found: dict[str, Any]) -> dict[str, Any]:
    """GPT-2's move all of a query's logits alike: their gradient is rounding, which Adam blows up, by DDP as well."""
    parts = {name: value.chunk(3) for name, value in found["weights"].items() if name.endswith("attn.c_attn.bias")}
    others = {name: torch.cat([queries, values]) for name, (queries, _, values) in parts.items()}
    return {**found, "weights": {**found["weights"], **others}}


@pytest.mark.parametrize("option", ["token_scores", "drop_tokens"])
def test_scores_of_tokens_are_refused_before_the_first_rollout(tmp_path: Path, train: Train, option: str) -> None:
    def run(rank: int) -> str:
        with pytest.raises(UsageError) as refusal:
            train(RANKS, InfluenceFilterCallback(**{option: True}), sharded=True)
        return str(refusal.value)

    for text in on_ranks(run, tmp_path):
        assert f"{option} = True" in text
        assert "each rank holds parts of the model, and forward mode takes all of it (strategy=ddp)" in text


def test_a_rank_to_which_an_earlier_filter_left_nothing_keeps_in_step(tmp_path: Path, train: Train, task: Task) -> None:
    def filters() -> list[L.Callback]:
        first = InfluenceFilterCallback.paper(scorer=ByPlace(task, (10, 0)), weight=Uniform(), name="first", **FREE)
        return [first, InfluenceFilterCallback(ExactScorer(), **FREE)]

    one = train(1, *filters(), **GENTLE)
    for rank in on_ranks(lambda rank: train(RANKS, *filters(), sharded=True, **GENTLE), tmp_path):
        assert distance(rank["weights"], one["weights"]) < 1e-5
        assert len(rank["curves"]) == ITERATIONS
