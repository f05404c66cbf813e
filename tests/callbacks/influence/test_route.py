"""Which way scores come is decided once; in half precision they are those of float32, whichever it is."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning as L
import pytest
import torch
from parts import MakeModule, MakeTrainer, Recorder
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from ippo import PromptDataModule
from ippo.callbacks import InfluenceFilterCallback
from ippo.errors import UsageError
from ippo.influence import BufferDirection, ExactScorer, LookaheadScorer, ValidationDirection
from ippo.ppo.logprobs import LogprobPass
from ippo.rollout.episodes import Episodes
from ippo.rollout.sequences import Sequences
from ippo.sft import demonstration_loss


class Passes(L.Callback):
    def __init__(self) -> None:
        self.seen: list[LogprobPass] = []

    def on_logprob_pass(self, trainer: Any, module: Any, look: LogprobPass) -> None:
        self.seen.append(look)


class Answered:
    """An engine that answers with given episodes, whatever the precision."""

    def __init__(self, episodes: Episodes) -> None:
        fields = (episodes.prompt_ids, episodes.prompt_mask, episodes.response_ids, episodes.response_mask)
        self.sequences = Sequences(*fields)

    def generate(self, *_: Any) -> Sequences:
        return self.sequences


def note(scorer: Any = None, **options: Any) -> InfluenceFilterCallback:
    return InfluenceFilterCallback(scorer or ExactScorer(), dry_run=True, **options)


@pytest.fixture
def fit(make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule, rollout: Episodes) -> Any:
    def fit(callback: InfluenceFilterCallback, precision: Any = "32-true", iterations: int = 1, **options: Any) -> Any:
        module = options.pop("module", None) or make_module(**options)
        module.engine = Answered(rollout)
        passes, recorder = Passes(), Recorder()
        trainer = make_trainer(callback, passes, recorder, precision=precision, max_epochs=iterations)
        trainer.fit(module, data)
        return recorder.episodes[0], passes.seen[0]

    return fit


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> None:
    """Lightning's notices, also where a recipe that ran before has quieted them."""
    caplog.set_level(logging.INFO, "lightning.pytorch.utilities.rank_zero")


def scores(episodes: Episodes) -> Tensor:
    return torch.tensor(episodes.extras["score"])


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


class TestHalfPrecision:
    """Log-probabilities and advantages are those of the run, in bfloat16; the gradients are float32's."""

    @pytest.mark.parametrize("options", [{}, {"token_scores": True}, {"one_pass": False}], ids=str)
    def test_exact_scores_are_those_of_a_loop_in_float32(self, fit: Any, options: dict[str, Any]) -> None:
        expected, _ = fit(note(ExactScorer("loop")))
        episodes, look = fit(note(**options), "bf16-mixed")
        assert look.logprob_jvps is None
        assert_near(scores(episodes), scores(expected), 0.03)

    @pytest.mark.parametrize("rate", [1e-6, 1e-5, 1e-4])
    def test_differences_along_a_step_are_those_of_float32(self, fit: Any, rate: float) -> None:
        expected, whole = fit(note(LookaheadScorer(learning_rate=rate)))
        episodes, look = fit(note(LookaheadScorer(learning_rate=rate)), "bf16-mixed")
        assert whole.logprob_jvps is not None
        assert look.logprob_jvps is None
        assert_near(scores(episodes), scores(expected), 0.03)
        loop, _ = fit(note(ExactScorer("loop")))
        assert torch.corrcoef(torch.stack([scores(episodes), scores(loop)]))[0, 1] > (0.9 if rate < 1e-4 else 0.5)

    @pytest.mark.parametrize("scorer", [None, LookaheadScorer(learning_rate=1e-5)], ids=["exact", "lookahead"])
    def test_tokens_are_noted_and_silenced(self, fit: Any, scorer: Any) -> None:
        whole, _ = fit(note(scorer, token_scores=True))
        episodes, _ = fit(note(scorer, token_scores=True), "bf16-mixed")
        found, expected = (
            torch.tensor([token for row in one.extras["token_scores"] for token in row]) for one in (episodes, whole)
        )
        assert_near(found, expected, 0.03)
        assert_near(scores(episodes), torch.tensor([sum(row) for row in episodes.extras["token_scores"]]), 1e-4)
        keep: dict[str, Any] = {"min_survival": 0.0, "on_empty": "keep_all"}
        silenced, _ = fit(InfluenceFilterCallback(scorer, drop_tokens=True, token_scores=True, **keep), "bf16-mixed")
        for place, row in enumerate(silenced.extras["token_scores"]):
            opposing = torch.tensor(row) < 0
            assert (silenced.advantages[place, : len(row)][opposing] == 0).all()

    def test_a_direction_that_is_held_is_the_one_that_would_be_computed_anew(self, fit: Any) -> None:
        fresh, _ = fit(note(ExactScorer("loop")), "bf16-mixed")
        held, _ = fit(note(ExactScorer("loop"), direction_every_n_batches=3), "bf16-mixed")
        assert torch.equal(scores(held), scores(fresh))

    def test_weights_in_half_precision_are_refused_where_differences_are_taken(
        self, make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
    ) -> None:
        module = make_module()
        module.model.policy.register_parameter("spare", torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16), False))
        with pytest.raises(UsageError, match=r"scorer = 'LookaheadScorer': it takes differences, which torch.bfloat16"):
            make_trainer(note(LookaheadScorer())).fit(module, data)


@pytest.fixture(autouse=True)
def _what_is_told_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning 2.6.0 keeps its messages from the root, where pytest listens."""
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)


class TestTheRoute:
    @pytest.mark.parametrize(
        ("callback", "precision", "told"),
        [
            (note(), "32-true", "scores come from the pass that takes the old log-probabilities"),
            (note(), "bf16-mixed", "scores take a pass of their own, because training computes in torch.bfloat16"),
            (note(LookaheadScorer()), "bf16-mixed", "derivatives, in float32, because training computes in"),
            (note(one_pass=False), "32-true", "scores take a pass of their own, because one_pass is off"),
            (note(direction=BufferDirection()), "32-true", "because the direction is made of the episodes"),
            (note(ExactScorer("loop")), "32-true", "because the scorer gives no derivatives of log-probabilities"),
        ],
        ids=["one pass", "autocast", "jvps apart", "off", "buffer", "loop"],
    )
    def test_is_told_once_with_its_reason(
        self, fit: Any, caplog: pytest.LogCaptureFixture, callback: Any, precision: str, told: str
    ) -> None:
        with caplog.at_level(logging.INFO):
            fit(callback, precision, iterations=3, learning_rate=1e-5)
        assert [told in message for message in caplog.messages].count(True) == 1
        scored = [message for message in caplog.messages if "scored by" in message]
        assert len(scored) == (0 if "come from" in told or "float32" in told else 1)

    def test_an_operation_without_a_forward_derivative_takes_a_pass_of_its_own(
        self, fit: Any, make_module: MakeModule, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
    ) -> None:
        """As in the expert layers of transformers. The loop, which they are left to, is a warning."""
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        experts = {"num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2}
        ends = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
        config = AutoConfig.for_model("mixtral", vocab_size=len(tokenizer), **sizes, **experts, **ends)
        policy = AutoModelForCausalLM.from_config(config).eval()
        found = []
        for scorer in (None, ExactScorer("loop")):
            with caplog.at_level(logging.INFO), warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                episodes, look = fit(note(scorer), policy=policy, iterations=2, learning_rate=1e-6)
            assert look.logprob_jvps is None
            found.append(scores(episodes))
            if scorer is None:
                assert sum("scored by loop" in str(one.message) for one in warned) == 1
                assert sum("torch has no forward derivative of" in message for message in caplog.messages) == 1
        assert_near(found[0], found[1], 1e-4)

    def test_a_function_that_changes_gradients_takes_a_pass_of_its_own(self, fit: Any, make_module: MakeModule) -> None:
        """There, the loop sees what training sees."""
        module = make_module()
        module.model.policy.lm_head.weight.register_hook(lambda gradient: gradient * 0.5)
        found, look = fit(note(), module=module)
        assert look.logprob_jvps is None
        other = make_module()
        other.model.policy.lm_head.weight.register_hook(lambda gradient: gradient * 0.5)
        expected, _ = fit(note(ExactScorer("loop")), module=other)
        assert_near(scores(found), scores(expected), 1e-4)


def test_what_is_no_direction_is_refused_before_training(fit: Any) -> None:
    with pytest.raises(UsageError, match=r"direction = .*write ValidationDirection\(batches, loss\)"):
        fit(note(direction=[torch.ones(1)]))


def test_a_mean_loss_of_the_direction_is_refused_before_training(fit: Any, gold: Sequences) -> None:
    mean = ValidationDirection([gold], lambda policy, rows: demonstration_loss(policy, rows).mean())
    with pytest.raises(UsageError, match=r"loss of the direction = 'a result of shape \(\)'"):
        fit(note(direction=mean))
