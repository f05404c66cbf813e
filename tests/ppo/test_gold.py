"""Which gold solutions are trained on, and which make the direction."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
from parts import MakeModule, MakeTrainer, Recorder

from ippo import PromptDataModule
from ippo.errors import UsageError
from ippo.functional import falling_factor
from ippo.ppo.gold import gold_places, gold_problems
from ippo.rollout.sequences import Sequences


@pytest.mark.parametrize(
    ("count", "share", "training", "direction"),
    [(8, 1.0, range(8), range(8)), (8, 0.25, range(2), range(2, 8)), (3, 0.5, range(2), range(2, 3))],
)
def test_places_by_hand(count: int, share: float, training: range, direction: range) -> None:
    assert gold_places(count, share, "training") == training
    assert gold_places(count, share, "direction") == direction


@pytest.mark.parametrize(("count", "share"), [(1, 0.5), (4, 0.1), (4, 0.95)])
def test_neither_part_may_be_empty(count: int, share: float) -> None:
    with pytest.raises(UsageError, match=rf"ppo\.ptx_share = {share}: of {count} gold solutions one part is empty"):
        gold_places(count, share, "training")


class Seen(L.Callback):
    """The rows of both uses, as the running module has them."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module: Any = pl_module
        self.training = texts(module, module._gold)
        self.direction = set().union(*(texts(module, chunk) for chunk in module.validation_direction().batches))
        self.problems = gold_problems(module)["prompt"]


def texts(module: Any, rows: Sequences) -> set[str]:
    pairs = zip(rows.input_ids, rows.attention_mask.bool(), strict=True)
    return {module.tokenizer.decode(ids[real].tolist()) for ids, real in pairs}


def test_a_module_trains_on_the_one_part_and_takes_its_direction_from_the_other(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
) -> None:
    parted, whole = Seen(), Seen()
    for seen, share in ((parted, 0.5), (whole, 1.0)):
        module = make_module(ptx_coef=0.1, ptx_batch_size=2, ptx_share=share, micro_batch_size=64)
        make_trainer(seen).fit(module, data)
    assert whole.training == whole.direction
    assert parted.training | parted.direction == whole.training
    assert not parted.training & parted.direction
    gold = [row["prompt"] for row in data.gold]
    assert parted.problems == gold[gold_places(len(gold), 0.5, "direction").start :][: len(parted.problems)]


def test_the_factor_falls_in_a_line(make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule) -> None:
    recorder = Recorder()
    module = make_module(ptx_coef=0.4, ptx_batch_size=2, ptx_schedule="linear")
    make_trainer(recorder, max_epochs=2).fit(module, data)
    assert [curves["ppo/ptx_coef"] for curves in recorder.curves] == pytest.approx([0.4, 0.2])


def test_nothing_falls_where_no_end_is_known() -> None:
    assert falling_factor(7, of=-1, schedule="linear") == falling_factor(7, of=8, schedule="constant") == 1.0
