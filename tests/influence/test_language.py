"""The loss of any causal language model, and scores of one in three lines."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ippo.errors import UsageError
from ippo.influence import ExactScorer, ValidationDirection, causal_lm_losses

_GPT2: dict[str, Any] = {"vocab_size": 31, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
_COMMON: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA = {**_COMMON, "intermediate_size": 24, "num_key_value_heads": 1}
# Falcon writes over outputs of its layers, OPT flattens rows, and the experts of Mixtral see tokens, not episodes.
OPTIONS: dict[str, dict[str, Any]] = {
    "gpt2": {**_GPT2, "bos_token_id": 1, "eos_token_id": 2},
    "llama": _LLAMA,
    "gemma3_text": {**_LLAMA, "head_dim": 8},
    "opt": {**_COMMON, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "falcon": _COMMON,
    "mixtral": {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
}
# Not scored in the last test: their positions alone are looked at.
OTHERS: dict[str, dict[str, Any]] = {
    "roberta": {**_COMMON, "intermediate_size": 24, "is_decoder": True, "pad_token_id": 1},
    "bloom": {"vocab_size": 31, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "trocr": {
        "vocab_size": 31,
        "d_model": 16,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 24,
        "max_position_embeddings": 16,
        "cross_attention_hidden_size": 16,
    },
}
LENGTHS = (7, 4, 2, 5)


def build(name: str) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **{**OPTIONS, **OTHERS}[name]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def pad(rows: list[Tensor], side: str, filler: int) -> Tensor:
    width = max(map(len, rows))
    blanks = [row.new_full((width - len(row),), filler) for row in rows]
    pairs = [(blank, row) if side == "left" else (row, blank) for blank, row in zip(blanks, rows, strict=True)]
    return torch.stack([torch.cat(pair) for pair in pairs])


@pytest.fixture(scope="module")
def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    return build("gpt2").eval()


@pytest.fixture
def rows() -> list[Tensor]:
    return [torch.randint(31, (length,)) for length in LENGTHS]


class TestCausalLMLosses:
    @staticmethod
    def plain(model: PreTrainedModel, ids: Tensor, counted: list[int]) -> float:
        """The mean over the places counted of -log p(token | those before it), of one row without padding."""
        logprobs = model(ids[None]).logits[0].log_softmax(-1)
        losses = [-float(logprobs[place - 1, ids[place]]) for place in counted if place > 0]
        return sum(losses) / max(1, len(losses))

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("filler", [0, 30])
    def test_padding_does_not_matter(self, gpt2: PreTrainedModel, rows: list[Tensor], side: str, filler: int) -> None:
        mask = pad([torch.ones_like(row) for row in rows], side, 0)
        losses = causal_lm_losses(gpt2, {"input_ids": pad(rows, side, filler), "attention_mask": mask})
        assert losses.shape == (4,)
        assert losses.requires_grad
        assert losses.tolist() == pytest.approx([self.plain(gpt2, row, [*range(len(row))]) for row in rows], rel=1e-4)

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_labels_say_what_counts(self, gpt2: PreTrainedModel, rows: list[Tensor], side: str) -> None:
        """The first token is never predicted; a row of which nothing counts has no loss."""
        counted = [[1, 5, 6], [0, 3], [0], [2, 3, 4]]
        labels = [
            torch.where(torch.tensor([place in chosen for place in range(len(row))]), row, -100)
            for row, chosen in zip(rows, counted, strict=True)
        ]
        batch = {
            "input_ids": pad(rows, side, 0),
            "attention_mask": pad([torch.ones_like(row) for row in rows], side, 0),
            "labels": pad(labels, side, -100),
        }
        expected = [self.plain(gpt2, row, chosen) for row, chosen in zip(rows, counted, strict=True)]
        assert expected[2] == 0
        assert causal_lm_losses(gpt2, batch).tolist() == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_labels_may_be_set_under_the_padding_too(
        self, gpt2: PreTrainedModel, rows: list[Tensor], side: str
    ) -> None:
        ids, mask = pad(rows, side, 3), pad([torch.ones_like(row) for row in rows], side, 0)
        expected = causal_lm_losses(gpt2, {"input_ids": ids, "attention_mask": mask})
        losses = causal_lm_losses(gpt2, {"input_ids": ids, "attention_mask": mask, "labels": ids})
        assert torch.equal(losses, expected)

    def test_without_a_mask_all_tokens_count(self, gpt2: PreTrainedModel) -> None:
        ids = torch.randint(31, (3, 6))
        losses = causal_lm_losses(gpt2, {"input_ids": ids})
        assert losses.tolist() == pytest.approx([self.plain(gpt2, row, [*range(6)]) for row in ids], rel=1e-4)

    def test_their_mean_is_the_models_own_loss(self, gpt2: PreTrainedModel) -> None:
        ids = torch.randint(31, (3, 6))
        torch.testing.assert_close(causal_lm_losses(gpt2, {"input_ids": ids}).mean(), gpt2(ids, labels=ids).loss)

    def test_labels_are_what_is_predicted(self, gpt2: PreTrainedModel) -> None:
        ids, labels = torch.randint(31, (2, 1, 6))
        expected = gpt2(ids, labels=labels).loss
        torch.testing.assert_close(causal_lm_losses(gpt2, {"input_ids": ids, "labels": labels})[0], expected)

    @pytest.mark.parametrize("cache", [True, False])
    @pytest.mark.parametrize("name", ["gpt2", "llama"])
    def test_packed_rows_cost_what_the_model_itself_says(self, name: str, cache: bool) -> None:
        """Without a cache it finds by their positions where one ends and the next begins."""
        model = build(name).eval()
        model.config.use_cache = cache
        ids, positions = torch.randint(31, (1, 8)), torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
        labels = ids.masked_fill(positions == 0, -100)
        losses = causal_lm_losses(model, {"input_ids": ids, "labels": labels, "position_ids": positions})
        expected = model(input_ids=ids, labels=labels, position_ids=positions).loss
        torch.testing.assert_close(losses[0], expected)

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("name", ["roberta", "bloom", "trocr"])
    def test_models_that_count_positions_in_another_way(self, name: str, side: str, rows: list[Tensor]) -> None:
        """RoBERTa from the number after the padding token's; BLOOM and TrOCR by themselves, from the first column."""
        model, rows = build(name).eval(), [3 + row % 28 for row in rows]  # RoBERTa takes the padding token for padding
        mask = pad([torch.ones_like(row) for row in rows], side, 0)
        losses = causal_lm_losses(model, {"input_ids": pad(rows, side, 1), "attention_mask": mask})
        assert losses.tolist() == pytest.approx([self.plain(model, row, [*range(len(row))]) for row in rows], rel=1e-4)

    def test_a_wrapped_model_is_told_its_positions(self, gpt2: PreTrainedModel, rows: list[Tensor]) -> None:
        batch = {
            "input_ids": pad(rows, "left", 0),
            "attention_mask": pad([torch.ones_like(row) for row in rows], "left", 0),
        }
        wrapped = get_peft_model(copy.deepcopy(gpt2), LoraConfig(r=2, task_type="CAUSAL_LM")).eval()  # without effect
        torch.testing.assert_close(causal_lm_losses(wrapped, batch), causal_lm_losses(gpt2, batch))

    @pytest.mark.parametrize("name", ["attention_mask", "labels", "position_ids"])
    def test_columns_of_another_shape_are_refused(self, gpt2: PreTrainedModel, name: str) -> None:
        batch = {"input_ids": torch.ones(2, 4, dtype=torch.long), name: torch.ones(1, 4, dtype=torch.long)}
        with pytest.raises(UsageError, match=rf"batch\['{name}'\] = 'of shape \(1, 4\)': input_ids have \(2, 4\)"):
            causal_lm_losses(gpt2, batch)

    def test_a_batch_without_ids_is_refused(self, gpt2: PreTrainedModel) -> None:
        with pytest.raises(UsageError, match=r"batch = \['inputs'\]: it needs input_ids"):
            causal_lm_losses(gpt2, {"inputs": torch.ones(1, 2)})


@pytest.mark.parametrize("name", OPTIONS)
def test_scores_in_three_lines(name: str) -> None:
    model = build(name)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    batches = [
        {"input_ids": torch.randint(31, (3, 6)), "attention_mask": mask},
        {"input_ids": torch.randint(31, (2, 4))},
    ]
    gold = [{"input_ids": torch.randint(31, (2, 5))}]

    direction = ValidationDirection(gold, causal_lm_losses)
    scores = ExactScorer().score(model, causal_lm_losses, batches, direction)

    parameters = list(model.eval().parameters())
    reference = torch.autograd.grad(causal_lm_losses(model, gold[0]).mean(), parameters)
    expected = []
    for batch in batches:
        for row in range(len(batch["input_ids"])):
            alone = {key: value[row : row + 1] for key, value in batch.items()}
            gradients = torch.autograd.grad(causal_lm_losses(model, alone).sum(), parameters)
            expected.append(sum(float((g * r).sum()) for g, r in zip(gradients, reference, strict=True)))
    assert scores.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-5 * max(map(abs, expected)))
