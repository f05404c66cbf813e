from __future__ import annotations

from typing import Any

import pytest

from ippo.errors import UsageError
from ippo.ppo.options import EvaluationOptions, PPOOptions


def test_defaults_hold() -> None:
    assert PPOOptions().advantage == "gae"
    assert EvaluationOptions().samples == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples_per_prompt": 0}, r"ppo\.samples_per_prompt = 0: use a whole number of at least 1"),
        ({"inner_epochs": 0}, r"ppo\.inner_epochs = 0"),
        ({"minibatch_size": 0}, r"ppo\.minibatch_size = 0"),
        ({"micro_batch_size": -1}, r"ppo\.micro_batch_size = -1"),
        ({"learning_rate": 0.0}, r"ppo\.learning_rate = 0\.0: use a number above 0"),
        ({"value_learning_rate": float("nan")}, r"ppo\.value_learning_rate = nan"),
        ({"max_grad_norm": 0.0}, r"ppo\.max_grad_norm = 0\.0"),
        ({"warmup": -1}, r"ppo\.warmup = -1: use 0 or more"),
        ({"clip_low": -0.1}, r"ppo\.clip_low = -0\.1"),
        ({"kl_coef": -0.1}, r"ppo\.kl_coef = -0\.1"),
        ({"ptx_coef": -1.0}, r"ppo\.ptx_coef = -1\.0: use 0 or more"),
        ({"ptx_batch_size": 0}, r"ppo\.ptx_batch_size = 0"),
        ({"ptx_coef": 1.0, "ptx_share": 0.0}, r"ppo\.ptx_share = 0\.0: use a share above 0, at most 1"),
        ({"ptx_share": 0.5}, r"ppo\.ptx_share = 0\.5: it parts what ppo\.ptx_coef trains on"),
        ({"gamma": 1.1}, r"ppo\.gamma = 1\.1: use a number between 0 and 1"),
        ({"lam": -0.1}, r"ppo\.lam = -0\.1"),
        ({"dual_clip": 1.0}, r"ppo\.dual_clip = 1\.0: use a number above 1, or null"),
        ({"value_clip": 0.0}, r"ppo\.value_clip = 0\.0: use a number above 0, or null"),
        ({"advantage": "rloo", "kl_coef": 0.0, "samples_per_prompt": 1}, r"ppo\.samples_per_prompt = 1: .* at least 2"),
        ({"advantage": "group_relative"}, r"ppo\.kl_place = 'reward': .* use kl_place=loss with kl_estimator=k3"),
        ({"kl_place": "loss"}, r"ppo\.kl_estimator = 'k1': as a loss its gradient is noise around zero: use k3 or k2"),
    ],
    ids=str,
)
def test_refuses_ppo_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PPOOptions(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"dual_clip": None, "value_clip": None},
        {"advantage": "rloo", "kl_place": "loss", "kl_estimator": "k3"},
        {"kl_place": "loss", "kl_coef": 0.0},
        {"advantage": "group_relative", "kl_coef": 0.0},
        {"gamma": 0.0, "lam": 0.0, "clip_low": 0.0},
    ],
    ids=str,
)
def test_takes_the_limits(options: dict[str, Any]) -> None:
    PPOOptions(**options)


@pytest.mark.parametrize("option", [{"samples": 0}, {"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}], ids=str)
def test_refuses_evaluation_options_out_of_range(option: dict[str, Any]) -> None:
    ((name, value),) = option.items()
    with pytest.raises(UsageError, match=rf"evaluation\.{name} = {value}: use"):
        EvaluationOptions(**option)
