"""One setting by default and one by the paper's name, in code as on the command line."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from ippo.callbacks import InfluenceFilterCallback
from ippo.callbacks.influence.default_scorer import default_scorer
from ippo.errors import UsageError
from ippo.influence import ExactScorer, PositiveScore, Proportional, Uniform
from ippo.influence.parameters import choose
from ippo.recipes.filters import build_filter


def setting(callback: Any) -> tuple[Any, ...]:
    parts = callback.scorer, callback.keep, callback.weight
    kinds = [type(part) for part in parts]
    return *kinds, callback.scorer.parameters, callback.scorer.backend, vars(callback.weight)


def test_the_class_and_the_recipes_have_one_default() -> None:
    assert setting(InfluenceFilterCallback()) == setting(build_filter("last_block"))
    assert setting(InfluenceFilterCallback())[:4] == (ExactScorer, PositiveScore, Uniform, 1)


def test_the_papers_setting_has_one_name() -> None:
    assert setting(InfluenceFilterCallback.paper()) == setting(build_filter("paper"))
    assert setting(InfluenceFilterCallback.paper())[:4] == (ExactScorer, PositiveScore, Proportional, None)
    assert InfluenceFilterCallback.paper(name="mine", patience=3).survival.patience == 3


def test_rows_that_are_dropped_carry_no_weights_of_the_papers() -> None:
    with pytest.raises(UsageError, match=r"weight = 'Proportional': .* use action='weight'"):
        InfluenceFilterCallback.paper(unit="batch")
    InfluenceFilterCallback.paper(unit="batch", action="weight")


class FineTuning(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2}
        self.model = LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes))
        self.head = nn.Linear(8, 2)


def test_by_default_the_last_block_of_a_language_model_counts_and_what_follows_it() -> None:
    module = FineTuning()
    chosen = choose(module, default_scorer(module).parameters)
    assert {name.split(".")[0] for name in chosen} == {"model", "head"}
    assert {name.split(".")[3] for name in chosen if ".layers." in name} == {"2"}


def test_of_other_modules_all_parameters_count_also_where_they_hold_a_list() -> None:
    for module in (nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])):
        assert default_scorer(module).parameters is None
