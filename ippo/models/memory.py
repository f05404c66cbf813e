"""How much memory a run takes, worked out before it starts.

Weights, gradients and optimizer state are counted, to the byte. What a pass holds is estimated from the model's shape,
for the usual decoder layer (attention and a gated MLP, each behind a norm) and fused attention.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import psutil
import torch
from torch import nn
from transformers import PreTrainedModel

from ippo.models.actor_critic import Layout
from ippo.models.adapters import LoraOptions
from ippo.models.configuration import text_config
from ippo.models.layouts import LayoutName, ModelOptions, build_models
from ippo.models.responses import logits_at_a_time
from ippo.models.sharding import layers_of

GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """What the memory of a pass depends on.

    Args:
        layers, hidden, intermediate, vocabulary: of the model.
        heads: query heads.
        head_size: numbers in a head.
        kv_heads: key and value heads.
        itemsize: bytes of an activation.
    """

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    heads: int
    head_size: int
    kv_heads: int
    itemsize: int

    @classmethod
    def of(cls, policy: PreTrainedModel) -> Shape:
        """The shape of a causal language model, by the names that its configuration has for it."""
        config = text_config(policy)
        heads = getattr(config, "num_attention_heads", None) or 1  # some models have no attention
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            vocabulary=config.vocab_size,
            heads=heads,
            head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            itemsize=policy.dtype.itemsize,
        )


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a run: what is held all the time, and what each phase adds.

    Args:
        weights: of all models; what they share counts once.
        training: gradients and AdamW's two moments of what is trained, and the filter's direction.
        update: activations and logits of one micro-batch's forward and backward.
        scoring: attention scores and logits of one micro-batch in forward mode.
        rollout: key-value cache and logits of one batch of responses.
        gathered: of models in parts, what is whole at a time, with its gradients.
    """

    weights: int
    training: int
    update: int
    scoring: int
    rollout: int
    gathered: int = 0

    @property
    def held(self) -> int:
        """What every phase holds."""
        return self.weights + self.training + self.gathered

    @property
    def total(self) -> int:
        """The peak: phases follow one another."""
        return self.held + max(self.update, self.scoring, self.rollout)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / GIB:.2g}" for name, size in vars(self).items() if size or name != "gathered")
        return f"about {self.total / GIB:.2g} GiB ({parts})"

    def as_measured(self, total: int) -> MemoryEstimate:
        """The same run, of which ``total`` bytes were measured at the peak. Weights, gradients and moments were
        counted, so that it is the passes that took more or less.

        Example:
            >>> print(MemoryEstimate(GIB, GIB, 6 * GIB, 4 * GIB, 2 * GIB).as_measured(total=5 * GIB))
            about 5 GiB (weights 1, training 1, update 3, scoring 2, rollout 1)
        """
        share = max(0, total - self.held) / max(1, self.total - self.held)
        passes = {name: round(share * getattr(self, name)) for name in ("update", "scoring", "rollout")}
        return replace(self, **passes)

    def advice(self, free: int) -> str:
        """What to reduce where ``free`` bytes are too few; empty where they are enough.

        Example:
            >>> print(MemoryEstimate(GIB, GIB, 6 * GIB, GIB, GIB).advice(free=6 * GIB))
            needs about 8 GiB, 6 GiB are free: reduce ppo.micro_batch_tokens (now 6 GiB) by half, which saves 3 GiB
        """
        if self.total <= free:
            return ""
        return f"needs about {self.total / GIB:.2g} GiB, {free / GIB:.2g} GiB are free: reduce {self.largest}"

    @property
    def largest(self) -> str:
        """What takes most, and how to make it less."""
        held, pass_ = self.held, max(self.update, self.scoring)
        most = max(held, pass_, self.rollout)
        if most == held:
            parts = "more ranks" if self.gathered else "--trainer.strategy fsdp2 on several cards"
            return f"the models (now {held / GIB:.2g} GiB) by --layout lora, {parts}, or take a smaller policy"
        name = "ppo.micro_batch_tokens" if most == pass_ else "sampling.batch_tokens"
        return f"{name} (now {most / GIB:.2g} GiB) by half, which saves {most / 2 / GIB:.2g} GiB"


def estimate_memory(
    shape: Shape,
    weights: int,
    trained_policy: int,
    trained_value: int,
    micro_batch: tuple[int, int, int],
    rollout: tuple[int, int, int],
    trunks: int = 2,
    gradient_checkpointing: bool = False,
    at_a_time: int | None = None,
) -> MemoryEstimate:
    """Bytes that a run needs.

    Args:
        shape: of the model.
        weights: bytes of all models.
        trained_policy, trained_value: numbers that are trained, each with a gradient and two moments in float32.
        micro_batch, rollout: (rows, prompt tokens, response tokens) of one training or scoring pass, and of one batch
            of responses.
        trunks: how many trunks hold their activations for the backward pass at a time: policy's and critic's.
        gradient_checkpointing: whether a layer keeps its input alone and runs again.
        at_a_time: see ``ModelOptions.logits_at_a_time``.
    """
    rows, prompt, response = micro_batch
    width, length = shape.heads * shape.head_size, prompt + response
    kv = shape.kv_heads * shape.head_size
    # Each of the two norms keeps its input and its result; attention its queries, keys, values and output; the MLP
    # its gate before and after the nonlinearity, the other factor and their product.
    layer = 6 * shape.hidden + 4 * width + 2 * kv + 4 * shape.intermediate
    whole = layer + shape.layers * shape.hidden if gradient_checkpointing else layer * shape.layers
    most = logits_at_a_time(_device(), at_a_time)
    logits = min(rows * response * shape.vocabulary, max(most, rows * shape.vocabulary))
    count, _, new = rollout
    cache = 2 * shape.layers * kv * count * (rollout[1] + new) * shape.itemsize
    return MemoryEstimate(
        weights=weights,
        training=4 * (3 * (trained_policy + trained_value) + trained_policy),
        update=trunks * rows * length * whole * shape.itemsize + 3 * 4 * logits,
        scoring=4 * 4 * rows * shape.heads * length**2 + 4 * 4 * logits,
        rollout=cache + 3 * 4 * count * shape.vocabulary,
    )


def in_parts(found: MemoryEstimate, models: Layout, ranks: int) -> MemoryEstimate:
    """The same run with models of which each of several ranks keeps a share (FSDP2), as one rank sees it.

    While a layer runs, it and the next one are whole, and one more is on its way between the two forms; what belongs to
    no layer (embeddings, head, last norm) is whole throughout. Their gradients are, too, until each rank has its share.
    Scores take the pass of an update, and the direction of a layer and of what belongs to none.

    Args:
        found: with whole models.
        models: their shapes will do.
        ranks: how many there are.
    """
    trained = [model for model in (models.policy, models.value) if model is not None]
    layers = [layer for model in trained for layer in layers_of(model)]
    largest, slope = (max((size(layer) for layer in layers), default=0) for size in (bytes_of, _gradient_of))
    around, its_slope = (sum(map(size, trained)) - sum(map(size, layers)) for size in (bytes_of, _gradient_of))
    return MemoryEstimate(
        weights=-(-found.weights // ranks),
        training=-(-found.training // ranks),
        update=found.update,
        scoring=found.update + slope + its_slope,
        rollout=found.rollout,
        gathered=3 * largest + around + 2 * slope + its_slope,
    )


def blueprint(
    policy: PreTrainedModel,
    layout: LayoutName,
    options: ModelOptions,
    lora: LoraOptions,
    critic: bool = True,
    reference: bool = True,
) -> Layout:
    """The models of a layout without their numbers: shapes and types only, which take no memory."""
    with torch.device("meta"):
        empty = type(policy)(policy.config).to(policy.dtype)  # type: ignore[arg-type]
        return build_models(layout, empty, options, lora, critic, reference)


def _gradient_of(module: nn.Module) -> int:
    """Bytes of a whole gradient, in float32."""
    return sum(4 * parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def bytes_of(module: nn.Module) -> int:
    """Bytes of a module's parameters, each counted once however many parts own it."""
    return sum(parameter.numel() * parameter.itemsize for parameter in module.parameters())


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def free_memory() -> int:
    """Bytes that are free where the models will be: on the accelerator, or in the machine."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available
