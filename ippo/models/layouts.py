"""Which models are in memory, and how they are kept there: the layouts by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ippo.errors import require
from ippo.models.actor_critic import Layout, SeparateModels
from ippo.models.adapters import LoraModels, LoraOptions
from ippo.models.configuration import freeze_all_but_text
from ippo.models.reading import Padding
from ippo.models.shared import SharedModels
from ippo.modes import checkpoints_itself, run_as_its_parts

LayoutName = Literal["separate", "shared", "lora"]


@dataclass(frozen=True)
class ModelOptions:
    """How the models are kept in memory.

    Args:
        dtype: of the weights. ``"auto"`` keeps weights that are trained in float32, and the frozen base of the layout
            ``lora`` in bfloat16 where the checkpoint has half precision.
        gradient_checkpointing: keep no activations inside a layer but run it again in the backward pass.
        value_gradient: layout ``shared`` only: whether the value loss trains the policy's trunk, too.
        padding: of what policy, critic and reference read in training and scoring. ``"both"``: prompts on the left and
            responses on the right, as they were sampled, and a mask. ``"right"``: after each text, and no mask, which
            keeps attention from its flash kernels; less of it, too. A model whose numbers that would change keeps its
            mask, which is said. ``"auto"``: right on a GPU, else both, which a CPU's kernels mind little.
        logits_at_a_time: of the vocabulary projection, in numbers; bounds memory, changes no result. None: 2^24, or on
            a GPU what a 32nd of its memory holds (:func:`ippo.models.responses.logits_at_a_time`).
        fused_projection: where logits are many, optimizer steps take log-probabilities by torch's own projection and
            cross entropy in one (torch 2.13; float32 without autocast; a head that is a projection alone), and not
            from pieces of logits that the backward pass computes again. Elsewhere it changes nothing.
        compile_layers: run each layer of policy, critic and reference as a program of ``torch.compile``, made once for
            all of them. Rollouts and scores run the layers as they are.
    """

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: bool = False
    value_gradient: bool = False
    padding: Padding = "auto"
    logits_at_a_time: int | None = None
    fused_projection: bool = True
    compile_layers: bool = False

    def __post_init__(self) -> None:
        most = self.logits_at_a_time
        require(most is None or most >= 1, "models.logits_at_a_time", most, "use at least 1, or null")


def prepare(policy: PreTrainedModel, layout: LayoutName, options: ModelOptions) -> PreTrainedModel:
    """The policy in the dtype and mode that a layout trains it in; in place, and doing it twice changes nothing.

    Raises:
        UsageError: if it is quantised, or its weights would be trained in bfloat16.
    """
    quantised = getattr(policy, "is_quantized", False)
    name = f"{policy.config.name_or_path or type(policy).__name__}, quantised"
    require(not quantised, "policy", name, "its weights have no exact gradient: load the checkpoint in full precision")
    remedy = f"{layout} trains every weight, and a small step is lost in bfloat16's eight bits: use float32 or auto"
    alternative = "--layout lora, or compute (not keep) in bfloat16 with --trainer.precision bf16-mixed"
    trained_whole = layout != "lora"
    lost = trained_whole and options.dtype == "bfloat16"
    require(not lost, "models.dtype", options.dtype, f"{remedy}; for less memory {alternative}")
    half = policy.dtype in (torch.float16, torch.bfloat16)
    keep_half = options.dtype == "bfloat16" or (options.dtype == "auto" and half and not trained_whole)
    for parameter in policy.parameters():  # no buffers: rotary frequencies must stay exact
        parameter.data = parameter.data.to(torch.bfloat16 if keep_half else torch.float32)
    freeze_all_but_text(policy)
    for part in (one for one in policy.modules() if isinstance(one, PreTrainedModel)):  # its trunk, too: the critic's
        part.padding = options.padding  # type: ignore[assignment]
    policy.logits_at_a_time = options.logits_at_a_time  # type: ignore[assignment]
    policy.fused_projection = options.fused_projection  # type: ignore[assignment]
    if options.gradient_checkpointing:
        _checkpoint_layers(policy)
    return policy


def build_models(
    layout: LayoutName,
    policy: PreTrainedModel,
    options: ModelOptions = ModelOptions(),
    lora: LoraOptions = LoraOptions(),
    critic: bool = True,
    reference: bool = True,
) -> Layout:
    """Policy, value and reference in the layout called ``layout``.

    Args:
        layout: ``"separate"``, ``"shared"`` or ``"lora"``.
        policy: a causal language model, usually after its supervised warm start; becomes part of the layout.
        options, lora: see there.
        critic, reference: whether there is one; what is never asked takes no memory and is in no checkpoint.

    Raises:
        UsageError: see :func:`prepare` and :func:`ippo.models.adapters.with_adapter`.
    """
    policy = prepare(policy, layout, options)
    models: Layout
    if layout == "lora":
        models = LoraModels(policy, lora, critic)
    elif layout == "shared":
        models = SharedModels(policy, options.value_gradient, critic, reference)
    else:
        models = SeparateModels(policy, critic, reference)
    if options.compile_layers:
        compile_layers(models)
    return models


def compile_layers(models: nn.Module, backend: str = "inductor") -> None:
    """Let each layer run as a compiled program, for any length; names and weights stay.

    Raises:
        UsageError: if there is no layer that is known as one.
    """
    layers = [part for part in models.modules() if isinstance(part, GradientCheckpointingLayer)]
    remedy = "this model's layers are not known as such: use false"
    require(bool(layers), "models.compile_layers", True, remedy)
    for layer in layers:
        layer.compile(backend=backend, dynamic=True)


def _checkpoint_layers(policy: PreTrainedModel) -> None:
    """Non-reentrant, the only kind that forward mode passes and that needs no input with a gradient."""
    enable = getattr(policy, "activation_checkpointing_enable", None) or policy.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    policy.disable_input_require_grads()
    for layer in filter(checkpoints_itself, policy.modules()):
        run_as_its_parts(layer)
