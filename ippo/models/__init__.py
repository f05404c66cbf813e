"""Policy, value and reference models, and the embedded tiny policy."""

from ippo.models.actor_critic import ActorCritic, SeparateModels, ValueModel
from ippo.models.responses import response_logits, response_logprobs
from ippo.models.tiny import TinyOptions, tiny_llama, train_tokenizer

__all__ = [
    "ActorCritic",
    "SeparateModels",
    "TinyOptions",
    "ValueModel",
    "response_logits",
    "response_logprobs",
    "tiny_llama",
    "train_tokenizer",
]
