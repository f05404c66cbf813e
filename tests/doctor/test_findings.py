"""The checks as pure functions: numbers and texts in, a finding out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ippo.doctor import cost, gold_size, rewards, sampling, scores, texts
from ippo.doctor.gold_style import gold_style


@pytest.fixture
def own(tokenizer: PreTrainedTokenizerFast) -> Any:
    """A tokenizer that a test may change."""
    return type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>", eos_token="<eos>")


class TestTexts:
    def test_more_tokens_than_embeddings(self, shared_policy: LlamaForCausalLM, own: Any) -> None:
        assert texts.vocabulary(shared_policy, own).state == "ok"
        own.add_tokens(["one more"])
        assert texts.vocabulary(shared_policy, own).state == "wrong"

    @pytest.mark.parametrize(("ended", "state"), [(10, "ok"), (7, "ok"), (5, "warning"), (0, "wrong")])
    def test_responses_that_end(self, shared_policy: LlamaForCausalLM, own: Any, ended: int, state: str) -> None:
        found = texts.ending([True] * ended + [False] * (10 - ended), shared_policy, own, 24)
        assert found.state == state
        assert found.finding.startswith(f"{ended * 10}% of 10 responses end with '<eos>'")

    def test_an_end_that_is_not_the_models(self, policy: LlamaForCausalLM, own: Any) -> None:
        policy.config.eos_token_id = policy.generation_config.eos_token_id = own.pad_token_id  # type: ignore[union-attr]
        found = texts.ending([True] * 10, policy, own, 24)
        assert found.state == "warning"
        assert "ends its texts with '<pad>'" in found.remedy

    def test_every_end_is_named(self, policy: LlamaForCausalLM, own: Any) -> None:
        policy.generation_config.eos_token_id = [own.eos_token_id, own.pad_token_id]  # type: ignore[union-attr]
        found = texts.ending([True] * 10, policy, own, 24)
        assert found.state == "ok"
        assert "end with '<pad>' or '<eos>'" in found.finding

    @pytest.mark.parametrize(
        ("end", "declared", "said"),
        [
            ("<eos>", False, ""),
            ("<turn>", True, ""),
            ("<turn>", False, "ends a turn with '<turn>': add 320 to eos_token_id"),
            ("##", False, "ends a turn with no special token"),
        ],
    )
    def test_what_the_chat_template_writes_at_the_end_of_a_turn_is_an_end(
        self, policy: LlamaForCausalLM, own: Any, end: str, declared: bool, said: str
    ) -> None:
        own.add_special_tokens({"additional_special_tokens": ["<turn>"]})
        own.chat_template = "{% for one in messages %}{{ one.content }}" + end + "{% endfor %}"
        if declared:
            policy.generation_config.eos_token_id = [own.eos_token_id, 320]  # type: ignore[union-attr]
        found = texts.ending([True] * 10, policy, own, 24)
        assert found.state == ("warning" if said else "ok")
        assert said in found.remedy

    @pytest.mark.parametrize(("lengths", "state"), [([8, 9], "ok"), ([8] * 9 + [11], "warning"), ([11, 12], "wrong")])
    def test_room(self, lengths: list[int], state: str) -> None:
        assert texts.room(lengths, max_new_tokens=10).state == state

    def test_prompts(self, own: Any) -> None:
        assert texts.prompts(["Ava has 8 pens."], own).state == "ok"
        assert texts.prompts(["Ava has 8 pens.<eos>"], own).state == "wrong"
        own.bos_token = "<pad>"
        assert texts.prompts(["<pad><pad>Ava"], own).state == "wrong"

    def test_a_chat_template_that_is_not_used(self, own: Any) -> None:
        own.chat_template = "{{ messages }}"
        assert texts.prompts(["Ava has 8 pens."], own).state == "warning"
        own.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
        assert texts.prompts(["<|user|>Ava has 8 pens."], own).state == "ok"


class TestRewards:
    def test_gold_answers(self) -> None:
        assert rewards.gold_answers([True] * 4, ["faithful"] * 4).state == "ok"
        assert rewards.gold_answers([True] * 99 + [False], ["faithful"] * 99 + ["wrong"]).state == "warning"
        assert rewards.gold_answers([True, False], ["faithful", "wrong"]).state == "wrong"

    @pytest.mark.parametrize(
        ("spoiled", "state"), [(0, "ok"), (5, "ok"), (6, "warning"), (20, "warning"), (21, "wrong")]
    )
    def test_gold_answers_by_wrong_steps(self, spoiled: int, state: str) -> None:
        chains = ["wrong_step"] * spoiled + ["faithful"] * (60 - spoiled) + ["unverifiable"] * 40
        assert rewards.gold_answers([True] * 100, chains).state == state

    @pytest.mark.parametrize(("paid", "state"), [(10, "ok"), (9, "ok"), (8, "warning"), (4, "wrong")])
    def test_gold_rewards(self, paid: int, state: str) -> None:
        assert rewards.gold_rewards([1.0] * paid + [0.0] * (10 - paid)).state == state

    def test_contrast(self) -> None:
        groups = torch.tensor([0, 0, 1, 1])
        mixed = rewards.contrast(torch.tensor([1.0, 0.0, 0.0, 0.0]), groups)
        assert (mixed.state, mixed.finding) == ("ok", "mean reward 0.25; 50% of 2 prompts have rewards that differ")
        assert rewards.contrast(torch.ones(4), groups).state == "warning"
        for nothing in (torch.zeros(4), -torch.ones(4)):
            assert rewards.contrast(nothing, groups).state == "wrong"
            assert "no response earns anything" in rewards.contrast(nothing, groups).finding


class TestSampling:
    def surprise(self, drawn_at: float, said: float, masked: bool = False) -> sampling.Surprise:
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(40, 25, 12, generator=generator) * 2
        ids = torch.multinomial((logits / drawn_at).softmax(-1).flatten(0, 1), 1, generator=generator).view(40, 25)
        mask = torch.ones_like(ids, dtype=torch.bool)
        if masked:
            mask[:, 10:], ids[:, 10:] = False, 0
        return sampling.surprise(logits, ids, mask, said)

    @pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
    def test_what_was_drawn_there_looks_drawn_there(self, temperature: float) -> None:
        found = self.surprise(temperature, temperature)
        assert abs(found.deviations) < 3
        assert sampling.sampled_distribution(found, temperature).state == "ok"

    @pytest.mark.parametrize(("drawn_at", "side"), [(1.3, "rarer"), (0.7, "commoner")])
    def test_another_temperature(self, drawn_at: float, side: str) -> None:
        finding = sampling.sampled_distribution(self.surprise(drawn_at, 1.0), 1.0)
        assert finding.state == "wrong"
        assert side in finding.finding

    def test_padding_does_not_count(self) -> None:
        found = self.surprise(1.0, 1.0, masked=True)
        assert found.tokens == 400
        assert abs(found.deviations) < 3

    def test_parts_add_up(self) -> None:
        logits, ids = torch.randn(4, 3, 5), torch.randint(5, (4, 3))
        mask = torch.arange(3) < torch.tensor([[1], [2], [3], [3]])
        whole = sampling.surprise(logits, ids, mask, 1.0)
        one, two = (sampling.surprise(logits[rows], ids[rows], mask[rows], 1.0) for rows in (slice(2), slice(2, 4)))
        assert (one + two).total == pytest.approx(whole.total)
        assert (one + two).variance == pytest.approx(whole.variance)

    def test_logprobs_are_compared_where_tokens_are(self) -> None:
        sampled, mask = torch.zeros(1, 2), torch.tensor([[True, False]])
        assert sampling.recomputed_logprobs(sampled, torch.tensor([[0.0, 9.0]]), mask, half=False).state == "ok"
        near = torch.tensor([[0.015, 0.0]])
        assert sampling.recomputed_logprobs(sampled, near, mask, half=False).state == "wrong"
        assert sampling.recomputed_logprobs(sampled, near, mask, half=True).state == "ok"


class TestScores:
    loop = torch.tensor([4.0, -1.0])

    def test_backends_that_agree(self) -> None:
        found = scores.backends({"loop": self.loop, "ghost": self.loop, "jvp": self.loop + 1e-3}, {}, half=False)
        assert (found.state, found.remedy) == ("ok", "")

    def test_a_backend_that_does_not(self) -> None:
        found = scores.backends({"loop": self.loop, "ghost": self.loop * 1.1, "jvp": self.loop}, {}, half=False)
        assert found.state == "wrong"
        assert "backend='jvp'" in found.remedy

    def test_only_the_slow_one_is_left(self) -> None:
        found = scores.backends({"loop": self.loop}, {"ghost": "'rnn', because", "jvp": "no formula"}, half=False)
        assert found.state == "warning"
        assert "ghost refuses: 'rnn', because; jvp refuses: no formula" in found.finding

    def test_composition(self) -> None:
        assert scores.composition(self.loop, self.loop + 1e-6, half=False).state == "ok"
        found = scores.composition(self.loop, torch.tensor([4.0, 1.0]), half=False)
        assert found.state == "wrong"
        assert "50% of signs flip" in found.finding

    @pytest.mark.parametrize(("flips", "own", "state"), [(1, True, "ok"), (2, True, "warning"), (4, True, "wrong")])
    def test_half_precision(self, flips: int, own: bool, state: str) -> None:
        precise = torch.ones(10)
        half = torch.where(torch.arange(10) < flips, -precise, precise)
        assert scores.half_precision(precise, half, own).state == state
        assert scores.half_precision(precise, half, own=False).state == "ok"  # it is not what the run would do


class TestGoldSize:
    def parts(self, noise: float) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(200, generator=generator) + noise * torch.randn(8, 200, generator=generator)

    def test_parts_of_one_signal(self) -> None:
        """Halves average four parts each: r = 1 / (1 + noise ** 2 / 4)."""
        halves, agreement = gold_size.split_half(self.parts(2.0), torch.ones(8))
        assert halves == pytest.approx(0.5, abs=0.05)
        assert agreement == pytest.approx(0.667, abs=0.05)  # 1/2 + arcsin(r) / pi
        assert gold_size.gold_set(halves, agreement, 64).state == "warning"

    def test_pure_noise_and_pure_signal(self) -> None:
        noise = torch.randn(8, 200, generator=torch.Generator().manual_seed(1))
        assert gold_size.gold_set(*gold_size.split_half(noise, torch.ones(8)), 64).state == "wrong"
        assert gold_size.gold_set(*gold_size.split_half(self.parts(0.1), torch.ones(8)), 64).state == "ok"

    def test_parts_count_by_their_size(self) -> None:
        scores_ = torch.tensor([[1.0, 2.0, 4.0], [-1.0, -2.0, -4.0], [1.0, 2.0, 4.0]])
        halves, _ = gold_size.split_half(scores_, torch.tensor([1.0, 3.0, 1.0]))
        assert halves == pytest.approx(-1.0)  # whichever half the heavy part is in, it outweighs its fellow

    def test_needed_inverts_the_formula(self) -> None:
        more = gold_size.needed(0.3, rows=32)
        assert more is not None
        assert gold_size.reliability(0.3, factor=2 * more / 32) == pytest.approx(0.8, abs=0.01)
        assert gold_size.needed(-0.1, rows=32) is None


@pytest.mark.parametrize(("gold_loss", "state"), [(0.3, "ok"), (1.2, "ok"), (1.4, "warning"), (2.4, "wrong")])
def test_gold_solutions_surprise_about_as_much_as_own_answers(gold_loss: float, state: str) -> None:
    finding = gold_style(gold_loss, own=0.3)
    assert finding.state == state
    assert bool(finding.remedy) == (state != "ok")


class TestCost:
    @pytest.mark.parametrize(("needed", "state"), [(50, "ok"), (90, "warning"), (101, "wrong")])
    def test_memory(self, needed: int, state: str) -> None:
        assert cost.memory(needed * cost.GIB, 100 * cost.GIB).state == state

    def test_time_is_scaled_to_the_iteration(self) -> None:
        spent = cost.Seconds(rollout=2.0, scoring=1.0, update=3.0)
        finding = cost.time(spent, episodes=64, wanted=256, inner_epochs=2, iterations=30)
        text = "36.0 s an iteration (rollout 8.0, scoring 4.0, update 24.0), 18 min for 30"
        assert (finding.state, finding.finding) == ("ok", text)
