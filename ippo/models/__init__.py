"""Policy, value and reference models, and the embedded tiny policy."""

from ippo.models.actor_critic import ActorCritic, SeparateModels, ValueModel
from ippo.models.adapters import LoraModels, LoraOptions
from ippo.models.export import export
from ippo.models.layouts import LayoutName, ModelOptions, build_models
from ippo.models.responses import response_logits, response_logprobs
from ippo.models.shared import SharedModels
from ippo.models.tiny import TinyOptions, tiny_llama, train_tokenizer

__all__ = [
    "ActorCritic",
    "LayoutName",
    "LoraModels",
    "LoraOptions",
    "ModelOptions",
    "SeparateModels",
    "SharedModels",
    "TinyOptions",
    "ValueModel",
    "build_models",
    "export",
    "response_logits",
    "response_logprobs",
    "tiny_llama",
    "train_tokenizer",
]
