"""Gold that says which of two answers is better."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from parts import MakeModule, MakeTrainer, Recorder
from small_recipe import SMALL, summary
from torch import Tensor

from ippo import Episodes, PromptDataModule
from ippo.callbacks import InfluenceFilterCallback
from ippo.errors import UsageError
from ippo.influence import ExactScorer, TopFraction, Uniform
from ippo.ppo.preferences import PreferenceDirection
from ippo.recipes.math import main

ROWS = [
    {"prompt": "Ava has 3 pens, buys 4. How many now?\n", "chosen": "3+4=7\n#### 7", "rejected": "#### 9"},
    {"prompt": "Ben has 9 eggs.\n", "chosen": "#### 9", "rejected": "9+1=10\n10-3=7\n#### 7"},
    {"prompt": "Cleo has 2 keys, loses 1. How many now?\n", "chosen": "2-1=1\n#### 1", "rejected": "2-1=1\n#### 30"},
]
FREE: dict[str, Any] = {"keep": TopFraction(1.0), "weight": Uniform(), "min_survival": 0.0}


class ByHand(L.Callback):
    """[n] dot products of each episode's gradient, by a backward of its own, with that of the pairs' mean loss."""

    def on_rollout_end(self, trainer: L.Trainer, pl_module: Any, episodes: Episodes) -> None:
        policy = pl_module.model.policy
        with torch.enable_grad():
            loss = torch.stack([self.loss(pl_module, **row) for row in ROWS]).mean()
            along = self.flat(policy, loss)
            rows = [self.flat(policy, pl_module.policy_losses(policy, one).sum()) for one in episodes.chunks(1)]
        self.loss_before, self.scores = float(loss.detach()), torch.stack(rows) @ along

    @staticmethod
    def flat(policy: Any, loss: Tensor) -> Tensor:
        return torch.cat([one.flatten() for one in torch.autograd.grad(loss, list(policy.parameters()))])

    def loss(self, module: Any, prompt: str, chosen: str, rejected: str) -> Tensor:
        return self.likelihood(module, prompt, rejected) - self.likelihood(module, prompt, chosen)

    @staticmethod
    def likelihood(module: Any, prompt: str, answer: str) -> Tensor:
        """The log-probability of an answer, its end among it: one row, no padding."""
        asked = module.tokenizer(prompt)["input_ids"]
        said = [*module.tokenizer(answer, add_special_tokens=False)["input_ids"], module.ends.closing]
        logits = module.model.policy(torch.tensor([asked + said])).logits[0, len(asked) - 1 : -1]
        return logits.log_softmax(-1)[torch.arange(len(said)), said].sum()


def test_scores_are_those_of_one_backward_an_episode_and_one_for_the_pairs(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
) -> None:
    by_hand, recorder = ByHand(), Recorder()
    scored = InfluenceFilterCallback.paper(scorer=ExactScorer(), direction=PreferenceDirection(ROWS), **FREE)
    make_trainer(by_hand, scored, recorder).fit(make_module(micro_batch_size=4), data)
    found = torch.tensor(recorder.episodes[0].records()["score"])
    assert (found - by_hand.scores).abs().max() <= 1e-5 * by_hand.scores.abs().max()
    assert recorder.curves[0]["influence/gold_loss"] == pytest.approx(by_hand.loss_before, rel=1e-4)


@pytest.mark.parametrize("options", [{"micro_batch_size": 1}, {"micro_batch_tokens": 40}, {"micro_batch_tokens": 4000}])
def test_micro_batches_do_not_change_it(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, options: dict[str, Any]
) -> None:
    recorder, by_hand = Recorder(), ByHand()
    scored = InfluenceFilterCallback.paper(direction=PreferenceDirection(ROWS), direction_rows=None, **FREE)
    make_trainer(by_hand, scored, recorder).fit(make_module(**options), data)
    found = torch.tensor(recorder.episodes[0].records()["score"])
    assert (found - by_hand.scores).abs().max() <= 1e-5 * by_hand.scores.abs().max()


def test_a_step_on_what_scores_high_prefers_the_chosen_answers_more(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
) -> None:
    def gold_loss(keep: Any) -> float:
        recorder = Recorder()
        scored = InfluenceFilterCallback.paper(direction=PreferenceDirection(ROWS), **{**FREE, "keep": keep})
        module = make_module(samples_per_prompt=4, inner_epochs=1)
        make_trainer(scored, recorder, max_epochs=2).fit(module, data)
        return recorder.curves[1]["influence/gold_loss"]

    assert gold_loss(TopFraction(0.25)) < gold_loss(TopFraction(1.0))


class TestRefusals:
    @pytest.mark.parametrize(
        ("rows", "said"),
        [
            ([], "pairs = 0: give at least one"),
            ([{"prompt": "1+1?", "chosen": "2"}], "give a text for each of prompt, chosen, rejected"),
            ([ROWS[0], {**ROWS[0], "rejected": ""}], "pairs[1] = "),
            ([{**ROWS[0], "rejected": ROWS[0]["chosen"]}], "both answers are the same: remove the row"),
        ],
    )
    def test_of_rows(self, rows: list[dict[str, str]], said: str) -> None:
        with pytest.raises(UsageError) as refusal:
            PreferenceDirection(rows)
        assert said in str(refusal.value)

    def test_of_a_file_that_is_not_there_or_lacks_a_column(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"pairs = '.*none\.jsonl': there is no such file"):
            PreferenceDirection(tmp_path / "none.jsonl")
        (tmp_path / "half.jsonl").write_text('{"prompt": "1+1?", "chosen": "2"}\n')
        with pytest.raises(UsageError, match=r"pairs = .* has the columns prompt, chosen, rejected, .* is missing"):
            PreferenceDirection(str(tmp_path / "half.jsonl"))

    def test_of_a_module_that_is_none_of_ours(self) -> None:
        with pytest.raises(UsageError, match="bind it to a PPOModule"):
            PreferenceDirection(ROWS).compute(torch.nn.Linear(1, 1))

    def test_of_a_host_without_a_tokenizer(self) -> None:
        with pytest.raises(UsageError, match="elsewhere give ValidationDirection"):
            PreferenceDirection(ROWS).bind(L.LightningModule())

    def test_of_an_answer_that_is_longer_than_the_context(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        rows = [{**ROWS[0], "rejected": "1+1=2\n" * 500}]
        scored = InfluenceFilterCallback.paper(direction=PreferenceDirection(rows), **FREE)
        with pytest.raises(UsageError, match=r"pairs\[0\] = .* tokens but the policy's context is"):
            make_trainer(scored).fit(make_module(), data)


def test_by_a_file_on_the_recipes_command_line(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    direction = {
        "class_path": "ippo.ppo.preferences.PreferenceDirection",
        "init_args": {"pairs": str(tmp_path / "pairs.jsonl")},
    }
    own = [f"--filter.direction={json.dumps(direction)}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    assert main([*SMALL, *own, "--sft.steps=5", "--trainer.limit_val_batches=0"]) == 0
    assert len(summary(tmp_path / "run")["iterations"]) == 2
    assert main([*SMALL, *own, "--sft.steps=5", "--trainer.limit_val_batches=0", "--resume"]) == 0


def test_so_many_pairs_at_a_time_where_direction_rows_says_so(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
) -> None:
    def losses(rows: int | None) -> list[float]:
        recorder = Recorder()
        scored = InfluenceFilterCallback.paper(direction=PreferenceDirection(ROWS), direction_rows=rows, **FREE)
        module = make_module(micro_batch_size=1, learning_rate=1e-9, value_learning_rate=1e-9)
        make_trainer(scored, recorder, max_epochs=4).fit(module, data)
        return [curves["influence/gold_loss"] for curves in recorder.curves]

    whole, one = losses(None), losses(1)
    assert len(set(one[:3])) == 3  # each pair in its turn, then the first again
    assert one[3] == pytest.approx(one[0], abs=1e-3)
    assert sum(one[:3]) / 3 == pytest.approx(whole[0], abs=1e-3)
