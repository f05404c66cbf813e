from __future__ import annotations

from itertools import chain, pairwise
from typing import Any

import lightning as L
import pytest
import torch
from parts import MakeTrainer
from transformers import LlamaForCausalLM

from ippo import SFTModule
from ippo.errors import UsageError
from ippo.rollout.sequences import Sequences
from ippo.sft import SFTOptions, demonstration_loader, demonstration_loss


def test_loss_is_that_of_the_solutions_tokens_alone(policy: LlamaForCausalLM, gold: Sequences) -> None:
    losses = demonstration_loss(policy, gold)
    fields = (gold.prompt_ids, gold.prompt_mask, gold.response_ids, gold.response_mask)
    for row, (prompt, prompt_mask, response, mask) in enumerate(zip(*fields, strict=True)):
        ids = torch.cat([prompt[prompt_mask], response[mask]])[None]
        labels = ids.clone()
        labels[0, : int(prompt_mask.sum())] = -100
        torch.testing.assert_close(losses[row], policy(ids, labels=labels).loss, rtol=1e-4, atol=1e-5)


def test_training_lowers_the_loss(policy: LlamaForCausalLM, gold: Sequences, make_trainer: MakeTrainer) -> None:
    before = demonstration_loss(policy, gold).mean()
    options = SFTOptions(steps=20, batch_size=4, learning_rate=1e-2)
    trainer = make_trainer(gradient_clip_val=1.0)
    trainer.fit(SFTModule(policy, options), demonstration_loader(gold, options, seed=0))
    assert trainer.global_step == 20
    assert demonstration_loss(policy, gold).mean() < 0.7 * before


def test_trains_with_dropout(policy: LlamaForCausalLM, gold: Sequences, make_trainer: MakeTrainer) -> None:
    seen = []
    policy.eval().model.layers[0].register_forward_hook(lambda module, *_: seen.append(module.training))
    options = SFTOptions(steps=1, batch_size=4)
    make_trainer().fit(SFTModule(policy, options), demonstration_loader(gold, options, seed=0))
    assert seen[-1]  # before it a model is only looked at


class TestGradientsThatAreNotFinite:
    def fit(self, policy: LlamaForCausalLM, gold: Sequences, trainer: Any, bad: set[int]) -> list[torch.Tensor]:
        """Train for eight steps, of which some have a gradient of NaN behind a finite loss; the weights after each."""
        weights = []

        class Spoil(L.Callback):
            def on_after_backward(self, *_: Any) -> None:
                if len(weights) in bad:
                    policy.model.norm.weight.grad[0] = torch.nan  # type: ignore[index]

            def on_train_batch_end(self, *_: Any) -> None:
                weights.append(policy.model.embed_tokens.weight.detach().clone())

        options = SFTOptions(steps=8, batch_size=4, learning_rate=1e-2)
        trainer(Spoil(), gradient_clip_val=1.0).fit(
            SFTModule(policy, options), demonstration_loader(gold, options, seed=0)
        )
        return weights

    def test_a_step_is_not_taken(self, policy: LlamaForCausalLM, gold: Sequences, make_trainer: MakeTrainer) -> None:
        weights = self.fit(policy, gold, make_trainer, bad={3, 5})
        moved = [not torch.equal(before, after) for before, after in pairwise(weights)]
        assert moved == [True, True, False, True, False, True, True]
        assert all(bool(one.isfinite().all()) for one in policy.parameters())

    def test_five_in_a_row_end_it_before_a_weight_is_lost(
        self, policy: LlamaForCausalLM, gold: Sequences, make_trainer: MakeTrainer
    ) -> None:
        with pytest.raises(UsageError, match=r"sft.learning_rate = 0.01: gradients were not finite, 5 steps in a row"):
            self.fit(policy, gold, make_trainer, bad={2, 3, 4, 5, 6})
        assert all(bool(one.isfinite().all()) for one in policy.parameters())


def test_rates_rise_to_the_peak_and_fall_to_a_tenth(policy: LlamaForCausalLM) -> None:
    configured: Any = SFTModule(policy, SFTOptions(steps=20, learning_rate=1.0, warmup=0.2)).configure_optimizers()
    rates = []
    for _ in range(20):
        rates.append(configured["optimizer"].param_groups[0]["lr"])
        configured["optimizer"].step()
        configured["lr_scheduler"]["scheduler"].step()
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert max(rates) == pytest.approx(1.0)
    assert all(later < earlier for earlier, later in pairwise(rates[4:]))
    assert 0.1 < rates[-1] < 0.2


class TestLoader:
    def rows(self, gold: Sequences, steps: int, seed: int) -> list[list[int]]:
        batches = demonstration_loader(gold, SFTOptions(steps=steps, batch_size=4), seed)
        return [
            row[mask].tolist()
            for batch in batches
            for row, mask in zip(batch.prompt_ids, batch.prompt_mask, strict=True)
        ]

    def test_holds_as_many_batches_as_steps(self, gold: Sequences) -> None:
        batches = list(demonstration_loader(gold, SFTOptions(steps=5, batch_size=3), seed=0))
        assert [len(batch) for batch in batches] == [3] * 5
        assert all(batch.prompt_mask.any(0).all() for batch in batches)

    def test_each_pass_reads_every_row_once_in_an_order_of_its_own(self, gold: Sequences) -> None:
        rows = self.rows(gold, steps=4, seed=0)
        first, second = rows[:8], rows[8:]
        assert sorted(first) == sorted(second) == sorted(self.rows(gold, steps=2, seed=1))
        assert first != second

    def test_order_is_the_seeds(self, gold: Sequences) -> None:
        assert self.rows(gold, 2, seed=3) == self.rows(gold, 2, seed=3) != self.rows(gold, 2, seed=4)

    def test_rows_of_similar_length_go_together_if_asked(self) -> None:
        mask = torch.arange(16) < torch.arange(1, 17)[:, None]  # responses of 1 to 16 tokens, prompts of 2
        prompts = torch.ones(16, 2, dtype=torch.long), torch.ones(16, 2, dtype=torch.bool)
        demonstrations = Sequences(*prompts, torch.ones(16, 16, dtype=torch.long), mask)

        def lengths(grouped: bool) -> list[list[int]]:
            options = SFTOptions(steps=16, batch_size=2, group_by_length=grouped)
            return [batch.lengths.tolist() for batch in demonstration_loader(demonstrations, options, seed=0)]

        grouped, mixed = lengths(True), lengths(False)
        assert grouped == lengths(True)
        for first in (0, 8):  # a pass
            assert sorted(chain.from_iterable(grouped[first : first + 8])) == list(range(1, 17))
        assert sum(map(max, grouped)) < sum(map(max, mixed))


@pytest.mark.parametrize(
    "option", [{"steps": -1}, {"batch_size": 0}, {"learning_rate": 0.0}, {"warmup": 1.0}, {"warmup": -0.1}], ids=str
)
def test_refuses_options_out_of_range(option: dict[str, Any]) -> None:
    ((name, value),) = option.items()
    with pytest.raises(UsageError, match=rf"sft\.{name} = {value}: use"):
        SFTOptions(**option)
