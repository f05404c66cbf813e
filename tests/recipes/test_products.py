"""Float32 products are rounded where a GPU gains by it, and what that changes is measured and said."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from parts import MakeModule, MakeTrainer
from rich.console import Console
from torch import Tensor

from ippo import PromptDataModule
from ippo.recipes.products import SayProducts, float32_products, products_error


@pytest.fixture(autouse=True)
def _own_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "highest"), ((8, 0), "high"), ((9, 0), "high")])
def test_auto_is_tf32_where_a_gpu_has_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    assert float32_products("auto") == "highest"  # on a CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert float32_products("auto") == expected
    assert float32_products("highest") == "highest"


class Rounds(torch.nn.Linear):
    """A head whose first logit is off by a quarter where products are rounded."""

    def forward(self, states: Tensor) -> Tensor:
        logits = super().forward(states)
        if torch.get_float32_matmul_precision() != "highest":
            logits[..., 0] += 0.25
        return logits


def test_what_it_changes_is_measured_and_said(
    make_module: MakeModule, make_trainer: MakeTrainer, data: PromptDataModule
) -> None:
    for chosen, said in (("highest", ""), ("high", "by up to 2.")):
        screen, module = io.StringIO(), make_module()
        policy: Any = module.model.policy
        policy.lm_head.__class__ = Rounds
        torch.set_float32_matmul_precision(chosen)
        make_trainer(SayProducts(Console(file=screen, width=400))).fit(module, data)
        assert torch.get_float32_matmul_precision() == chosen
        assert said in screen.getvalue()
        assert bool(screen.getvalue()) == bool(said)
        assert products_error(policy) == (0 if chosen == "highest" else pytest.approx(0.25, rel=0.2))
