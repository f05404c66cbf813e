from __future__ import annotations

from typing import Any

import pytest
import torch
from parts import MakeTrainer, is_odd
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3Config,
    MambaConfig,
    MptConfig,
    OPTConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ippo import PPOModule, PromptDataModule
from ippo.data import Task
from ippo.errors import OwnAttributeErrors
from ippo.models import LayoutName, LoraOptions, build_models
from ippo.models.configuration import context_length, state_size, text_config
from ippo.ppo.options import EvaluationOptions, PPOOptions
from ippo.rollout.sampling import Sampling

VOCABULARY = 320


def gemma3() -> Any:
    """A multimodal model: text inside, a vision tower beside it."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Gemma3Config(
        text_config={"vocab_size": VOCABULARY, **shape, **heads},  # type: ignore[arg-type]
        vision_config={**vision, "image_size": 28, "patch_size": 14},  # type: ignore[arg-type]
        mm_tokens_per_image=1,
    )


def bloom() -> Any:
    return BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)


def make(config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


class TestTheLimit:
    @pytest.mark.parametrize(
        ("config", "limit"),
        [
            (gemma3(), 96),
            (bloom(), None),
            (MptConfig(vocab_size=8, d_model=8, n_heads=2, n_layers=1, max_seq_len=77), 77),
            (MambaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1), None),
        ],
        ids=["nested", "ALiBi", "under another name", "recurrent"],
    )
    def test_is_the_texts_or_none(self, config: Any, limit: int | None) -> None:
        assert context_length(make(config)) == limit


def test_a_state_is_as_wide_as_the_trunk_returns_it() -> None:
    shape = {"hidden_size": 16, "word_embed_proj_dim": 8, "ffn_dim": 16, "num_hidden_layers": 1}
    policy = make(OPTConfig(vocab_size=9, num_attention_heads=2, max_position_embeddings=16, **shape))  # type: ignore[arg-type]
    states = policy.base_model(input_ids=torch.ones(1, 3, dtype=torch.long)).last_hidden_state
    assert states.shape[-1] == state_size(policy) == 8


@pytest.mark.parametrize("kind", [gemma3, bloom])
@pytest.mark.parametrize("layout", ["separate", "shared", "lora"])
def test_ppo_trains_the_text_and_nothing_else(
    kind: Any,
    layout: LayoutName,
    task: Task,
    tokenizer: PreTrainedTokenizerFast,
    data: PromptDataModule,
    make_trainer: MakeTrainer,
) -> None:
    policy = make(kind())
    policy.generation_config.eos_token_id = list(range(1, VOCABULARY, 3))  # type: ignore[union-attr]
    models = build_models(layout, policy, lora=LoraOptions(rank=2, targets="down_proj,dense_4h_to_h"))
    options = PPOOptions(samples_per_prompt=2, minibatch_size=8, learning_rate=1e-2, value_learning_rate=1e-2)
    sampling, evaluation = Sampling(max_new_tokens=8), EvaluationOptions(samples=2)
    module = PPOModule(models, tokenizer, is_odd, task.check, options, sampling, evaluation)
    before = {name: value.clone() for name, value in models.policy.state_dict().items()}
    made = text_config(models.policy)
    assert (made.vocab_size, models.policy.can_generate()) == (VOCABULARY, True)

    trainer = make_trainer()
    trainer.fit(module, data)
    assert trainer.callback_metrics["ppo/mismatch"] < 1e-6
    after = models.policy.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved
    assert not [name for name in moved if "vision" in name or "projector" in name]


class TestAProperty:
    class Module(OwnAttributeErrors, torch.nn.Module):
        @property
        def broken(self) -> Any:
            return torch.nn.Identity.nonsense  # type: ignore[attr-defined]

    def test_that_raises_says_what_was_missing(self) -> None:
        with pytest.raises(AttributeError, match="nonsense"):
            _ = self.Module().broken

    def test_others_are_found_or_not_as_in_any_module(self) -> None:
        module = self.Module()
        module.part = torch.nn.Linear(1, 1)
        assert isinstance(module.part, torch.nn.Linear)
        with pytest.raises(AttributeError, match="'Module' object has no attribute 'other'"):
            _ = module.other

    def test_every_module_of_ours_with_a_property_says_so(self) -> None:
        """Of the modules that the package defines."""

        kinds: list[type] = [torch.nn.Module]
        for kind in kinds:
            kinds += kind.__subclasses__()
        ours = [kind for kind in kinds if kind.__module__.startswith("ippo.") and issubclass(kind, torch.nn.Module)]
        with_property = [kind for kind in ours if any(isinstance(one, property) for one in vars(kind).values())]
        assert PPOModule in with_property
        assert not [kind for kind in with_property if not issubclass(kind, OwnAttributeErrors)]
