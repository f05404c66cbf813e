"""What every layout owes the trainer, on the real trainer: it knows none of them."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parts import MakeTrainer, Recorder, is_odd, state
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from ippo import Episodes, PPOModule, PromptDataModule
from ippo.callbacks import InfluenceFilterCallback
from ippo.data import Task
from ippo.errors import UsageError
from ippo.influence import ExactScorer, PositiveScore, Uniform, ValidationDirection
from ippo.influence.parameters import scored
from ippo.models import (
    LayoutName,
    LoraOptions,
    ModelOptions,
    SeparateModels,
    TinyOptions,
    build_models,
    export,
    response_logprobs,
    tiny_llama,
)
from ippo.models.actor_critic import Layout, ValueHead
from ippo.models.layouts import prepare
from ippo.models.memory import blueprint, bytes_of
from ippo.modes import checkpoints_itself
from ippo.ppo.options import EvaluationOptions, PPOOptions
from ippo.rollout.sampling import Sampling

LORA = LoraOptions(rank=2, alpha=4.0)
LAYOUTS = ("separate", "shared", "lora")

Build = Callable[..., Layout]


@pytest.fixture
def build(policy: LlamaForCausalLM) -> Build:
    def make(layout: LayoutName, **options: Any) -> Layout:
        torch.manual_seed(0)
        return build_models(layout, copy.deepcopy(policy), ModelOptions(**options), LORA).eval()

    return make


@pytest.fixture
def fit(task: Task, tokenizer: PreTrainedTokenizerFast, data: PromptDataModule, make_trainer: MakeTrainer) -> Any:
    """Two iterations with the influence filter; returns the recorder."""

    def run(models: Layout, **ppo: Any) -> Recorder:
        recorder = Recorder()
        options = PPOOptions(
            samples_per_prompt=4, inner_epochs=4, minibatch_size=8, learning_rate=1e-3, value_learning_rate=1e-2, **ppo
        )
        module = PPOModule(
            models, tokenizer, is_odd, task.check, options, Sampling(max_new_tokens=24), EvaluationOptions(samples=2)
        )
        torch.manual_seed(0)
        influence = InfluenceFilterCallback.paper(keep=PositiveScore(), weight=Uniform(), min_survival=0.0)
        make_trainer(influence, recorder, max_epochs=2).fit(module, data)
        return recorder

    return run


def counted(models: Layout, rollout: Episodes) -> tuple[Layout, list[Any]]:
    """The models, whose first layer is more than the identity, and a list that grows each time it runs."""
    layer, seen = models.policy.model.layers[0], []
    torch.nn.init.normal_(layer.self_attn.o_proj.weight, std=0.2)
    response_logprobs(models.policy, rollout.rows(torch.tensor([0])))  # a model's first pass is checked by others
    layer.mlp.register_forward_pre_hook(lambda *_: seen.append(True))
    return models, seen


@pytest.mark.parametrize("layout", LAYOUTS)
class TestEveryLayout:
    def test_trains_and_leaves_the_reference_alone(self, build: Build, fit: Any, layout: LayoutName) -> None:
        models = build(layout)
        before = state(models)
        recorder = fit(models)
        after = state(models)
        moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
        trained = {name for name, parameter in models.named_parameters() if parameter.requires_grad}
        assert moved == trained
        assert {name.split(".")[0] for name in moved} == {"policy", "value"}
        kept = [curves["influence/kept_fraction"] for curves in recorder.curves]
        assert all(0 < fraction < 1 for fraction in kept)

    def test_starts_with_the_policy_as_reference_and_values_of_zero(
        self, build: Build, rollout: Episodes, layout: LayoutName
    ) -> None:
        models = build(layout)
        with torch.no_grad():
            policy = response_logprobs(models.policy, rollout, 0.7)
            torch.testing.assert_close(policy, models.reference_logprobs(rollout, 0.7), rtol=0, atol=0)
        values = models.values(rollout)
        assert values.dtype == torch.float32
        assert not values.any()

    def test_a_checkpoint_holds_what_is_trained_and_puts_it_back(
        self, build: Build, rollout: Episodes, layout: LayoutName
    ) -> None:
        models, other = build(layout), build(layout)
        for parameters in models.parameter_groups().values():
            for parameter in parameters:
                torch.nn.init.normal_(parameter, std=0.1)
        saved = models.state_dict()
        named = models.named_parameters(remove_duplicate=False)
        assert set(saved) == {name for name, parameter in named if parameter.requires_grad}
        file = io.BytesIO()
        torch.save(saved, file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True), strict=True)
        with torch.no_grad():
            assert torch.equal(response_logprobs(other.policy, rollout), response_logprobs(models.policy, rollout))
            assert torch.equal(other.values(rollout), models.values(rollout))
            assert torch.equal(other.reference_logprobs(rollout, 1.0), models.reference_logprobs(rollout, 1.0))

    def test_is_saved_as_a_plain_model(
        self, build: Build, tokenizer: PreTrainedTokenizerFast, layout: LayoutName, tmp_path: Path
    ) -> None:
        models = build(layout)
        for parameter in models.parameter_groups()["policy"]:
            parameter.data += 0.05 * torch.randn_like(parameter)
        models.policy.lm_head._forward_hooks.clear()  # what the fixture adds to the logits is in no file
        base = state(models.reference)
        assert export(models, tokenizer, tmp_path) == tmp_path
        plain = AutoModelForCausalLM.from_pretrained(tmp_path)
        ids = torch.tensor([[5, 9, 12, 40]])
        assert type(plain) is LlamaForCausalLM
        with torch.no_grad():
            torch.testing.assert_close(plain(ids).logits, models.policy(ids).logits, rtol=1e-4, atol=1e-4)
            assert (plain(ids).logits - models.reference(ids).logits).abs().max() > 0.01
        assert all(torch.equal(value, base[name]) for name, value in state(models.reference).items())

    def test_gradient_checkpointing_changes_no_gradient(
        self, build: Build, rollout: Episodes, layout: LayoutName
    ) -> None:
        gradients, passes = [], []
        for on in (False, True):
            models, seen = counted(build(layout, gradient_checkpointing=on), rollout)
            response_logprobs(models.policy, rollout).sum().backward()
            gradients.append([p.grad for p in models.parameter_groups()["policy"]])
            passes.append(len(seen))
        assert passes == [1, 2]
        for plain, again in zip(*gradients, strict=True):
            torch.testing.assert_close(again, plain)

    def test_a_layer_that_checkpoints_itself_drops_nothing_out(
        self, build: Build, rollout: Episodes, layout: LayoutName
    ) -> None:
        """It stays in training mode to checkpoint, and may ask its mode whether to drop out, as OPT's does."""
        models = build(layout, gradient_checkpointing=True).eval()
        layer = next(part for part in models.policy.modules() if checkpoints_itself(part))
        asked: list[bool] = []
        layer.mlp.register_forward_pre_hook(lambda *_: asked.append(layer.training))
        response_logprobs(models.policy, rollout).sum().backward()
        assert layer.training
        assert not any(asked)

    def test_the_directions_gradient_is_checkpointed_too(
        self, build: Build, rollout: Episodes, layout: LayoutName
    ) -> None:
        def losses(policy: Any, episodes: Episodes) -> Tensor:
            return -response_logprobs(policy, episodes).sum(1)

        gradients, passes = [], []
        for on in (False, True):
            models, seen = counted(build(layout, gradient_checkpointing=on), rollout)
            with scored(models.policy):  # as a filter asks for it
                gradients.append(ValidationDirection([rollout], losses).compute(models.policy))
            passes.append(len(seen))
        assert passes == [1, 2]
        for name, plain in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], plain, rtol=1e-4, atol=1e-5)

    def test_dropout_stays_off_while_layers_run_again(self, build: Build, layout: LayoutName) -> None:
        models = build(layout, gradient_checkpointing=True)
        assert models.policy.model.layers[0].training
        assert not models.policy.model.layers[0].self_attn.training
        assert not any(part.training for part in models.reference.modules())


class TestShared:
    @pytest.mark.parametrize("flows", [False, True])
    def test_the_value_loss_reaches_the_trunk_only_where_it_may(
        self, build: Build, rollout: Episodes, flows: bool
    ) -> None:
        models = build("shared", value_gradient=flows)
        torch.nn.init.normal_(models.value.weight)
        models.values(rollout).square().sum().backward()
        assert models.value.weight.grad is not None
        assert (models.policy.model.layers[0].mlp.up_proj.weight.grad is not None) == flows

    def test_the_head_is_all_that_it_adds(self, build: Build) -> None:
        models = build("shared")
        assert [parameter.numel() for parameter in models.parameter_groups()["value"]] == [32, 1]


class TestLora:
    def test_one_base_is_in_memory(self, build: Build, policy: LlamaForCausalLM) -> None:
        models = build("lora")
        adapters = sum(parameter.numel() for group in models.parameter_groups().values() for parameter in group)
        assert bytes_of(models) == bytes_of(policy) + 4 * adapters
        models.double()  # the one set of weights moves together, as to another device
        assert models.policy.model.norm.weight is models.reference.model.norm.weight is models.value.trunk.norm.weight

    def test_the_policys_adapter_alone_is_scored(self, build: Build, rollout: Episodes) -> None:
        models = build("lora")
        for name, parameter in models.named_parameters():
            if parameter.requires_grad and name.startswith("policy"):
                torch.nn.init.normal_(parameter, std=0.1)
        names = {name for name, parameter in models.policy.named_parameters() if parameter.requires_grad}
        assert all("lora_" in name for name in names)
        direction = {name: torch.randn_like(models.policy.get_parameter(name)) for name in names}

        def losses(policy: Any, episodes: Episodes) -> torch.Tensor:
            return (response_logprobs(policy, episodes) * episodes.response_mask).sum(1)

        found = {
            backend: ExactScorer(backend).score(models.policy, losses, [rollout], direction)  # type: ignore[arg-type]
            for backend in ("loop", "ghost", "jvp")
        }
        for backend in ("ghost", "jvp"):
            torch.testing.assert_close(found[backend], found["loop"], rtol=1e-4, atol=1e-4)

    def test_adapters_stay_precise_on_a_bfloat16_base(self, build: Build, fit: Any) -> None:
        models = build("lora", dtype="bfloat16")
        assert {p.dtype for group in models.parameter_groups().values() for p in group} == {torch.float32}
        assert models.reference.dtype == torch.bfloat16
        before = state(models.policy)
        fit(models)
        moved = {name for name, value in state(models.policy).items() if not torch.equal(value, before[name])}
        assert moved == {name for name in before if "lora_" in name}

    @pytest.mark.parametrize(
        ("targets", "why"), [("nothing", "not found"), ("embed_tokens", "are one tensor, which cannot have an adapter")]
    )
    def test_refuses_targets_that_do_not_fit(self, policy: LlamaForCausalLM, targets: str, why: str) -> None:
        with pytest.raises(UsageError, match=rf"lora\.targets = '{targets}': .*{why}"):
            build_models("lora", policy, lora=LoraOptions(targets=targets))

    @pytest.mark.parametrize("option", [{"rank": 0}, {"alpha": 0.0}, {"targets": ""}])
    def test_refuses_options_out_of_range(self, option: dict[str, Any]) -> None:
        with pytest.raises(UsageError, match=rf"lora\.{next(iter(option))} = "):
            LoraOptions(**option)


class TestWithoutCriticAndReference:
    """GRPO without a KL penalty asks for neither, and holds the policy alone."""

    @pytest.fixture
    def policy(self, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
        return tiny_llama(tokenizer, TinyOptions(hidden_size=32, layers=2, heads=2, intermediate_size=48, context=64))

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_parameters_and_checkpoint_are_those_of_the_policy(
        self, policy: LlamaForCausalLM, layout: LayoutName
    ) -> None:
        alone = bytes_of(policy)
        models = build_models(layout, policy, lora=LORA, critic=False, reference=False).eval()
        adapters = sum(p.numel() * p.itemsize for p in models.parameter_groups()["policy"]) if layout == "lora" else 0
        assert bytes_of(models) == alone + adapters
        assert (
            bytes_of(blueprint(policy, layout, ModelOptions(), LORA, critic=False, reference=False)) == alone + adapters
        )
        assert models.parameter_groups()["value"] == []
        assert all(name.startswith("policy.") for name in models.state_dict())

    def test_a_run_checkpoints_the_policy_and_its_moments_and_goes_on_from_there(
        self,
        policy: LlamaForCausalLM,
        task: Task,
        tokenizer: PreTrainedTokenizerFast,
        data: PromptDataModule,
        make_trainer: MakeTrainer,
        tmp_path: Path,
    ) -> None:
        numbers = sum(one.numel() for one in policy.parameters())
        ppo = PPOOptions(advantage="group_relative", value_coef=0.0, kl_coef=0.0, samples_per_prompt=4, inner_epochs=1)
        for epochs in (1, 2):
            models = SeparateModels(copy.deepcopy(policy), critic=False, reference=False)
            module = PPOModule(models, tokenizer, is_odd, task.check, ppo, Sampling(max_new_tokens=8))
            trainer = make_trainer(max_epochs=epochs)
            trainer.fit(module, data, ckpt_path=tmp_path / "last.ckpt" if epochs == 2 else None)
            trainer.save_checkpoint(tmp_path / "last.ckpt")
        saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
        moments = [one for state in saved["optimizer_states"][0]["state"].values() for one in state.values()]
        assert sum(one.numel() for one in moments if one.dim()) == 2 * numbers
        assert (tmp_path / "last.ckpt").stat().st_size < 3 * 4 * numbers + 100_000

    @pytest.mark.parametrize(("held", "missing"), [({"critic": False}, "value"), ({"reference": False}, "reference")])
    def test_refuses_options_that_ask_for_what_is_not_there(
        self,
        policy: LlamaForCausalLM,
        task: Task,
        tokenizer: PreTrainedTokenizerFast,
        data: PromptDataModule,
        make_trainer: MakeTrainer,
        held: dict[str, bool],
        missing: str,
    ) -> None:
        module = PPOModule(SeparateModels(policy, **held), tokenizer, is_odd, task.check)
        with pytest.raises(UsageError, match=f"SeparateModels without a {missing}'.* make the models with one"):
            make_trainer().fit(module, data)


class TestDtype:
    @pytest.mark.parametrize(
        ("layout", "dtype", "expected"),
        [("separate", "auto", "float32"), ("shared", "float32", "float32"), ("lora", "auto", "bfloat16")],
    )
    def test_what_is_trained_is_kept_in_float32(
        self, policy: LlamaForCausalLM, layout: LayoutName, dtype: Any, expected: str
    ) -> None:
        kept = prepare(policy.half(), layout, ModelOptions(dtype=dtype))
        assert str(kept.dtype) == f"torch.{expected}"
        assert kept.model.rotary_emb.inv_freq.dtype == torch.float16  # buffers are left as they came, here by half()

    @pytest.mark.parametrize("layout", ["separate", "shared"])
    def test_refuses_to_train_bfloat16(self, policy: LlamaForCausalLM, layout: LayoutName) -> None:
        with pytest.raises(UsageError, match=r"models\.dtype = 'bfloat16': .* trains every weight"):
            build_models(layout, policy, ModelOptions(dtype="bfloat16"))

    def test_refuses_a_quantised_policy(self, policy: LlamaForCausalLM) -> None:
        policy.is_quantized = True
        with pytest.raises(UsageError, match=r"quantised.*load the checkpoint in full precision"):
            build_models("lora", policy)


@pytest.mark.parametrize("hidden", [torch.float32, torch.bfloat16])
def test_values_are_float32_under_autocast_too(hidden: torch.dtype) -> None:
    head, states = ValueHead(16), torch.randn(4, 5, 16).to(hidden)
    torch.nn.init.normal_(head.weight)
    with torch.autocast("cpu", torch.bfloat16):
        values = head(states)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, (states.float() @ head.weight.T).squeeze(-1))
