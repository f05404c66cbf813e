"""A choice of ``benchmarks/zoo.py`` that takes each path through the code: every number is that of plain torch."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def checks() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
        import zoo_checks

        return zoo_checks


@pytest.mark.parametrize(
    ("kind", "parts", "route"),
    [
        ("llama", "parts", "jvp"),
        ("gpt2", "parts", "jvp"),  # weights transposed, positions learned
        ("gemma2", "parts", "jvp"),  # logits capped, windows
        ("cohere", "parts", "jvp"),  # logits scaled
        ("granite", "parts", "jvp"),  # logits divided, embeddings multiplied
        ("opt", "parts", "jvp"),  # the head calls the decoder inside its base model
        ("bart", "parts", "jvp"),  # positions are columns: padding counts
        ("bert", "parts", "jvp"),  # a decoder by its configuration; layers in the head
        ("roberta", "parts", "jvp"),  # positions of its own begin elsewhere
        ("bloom", "parts", "ghost"),  # ALiBi; functions with a backward of their own
        ("mpt", "parts", "jvp"),
        ("gpt_neox", "parts", "jvp"),
        ("phi3", "parts", "jvp"),
        ("mixtral", "parts", "loop"),  # experts
        ("gpt_oss", "parts", "loop"),  # with biases, and attention sinks
        ("llama4_text", "parts", "jvp"),  # a trunk by another name
        ("deepseek_v3", "parts", "loop"),  # compressed keys and values
        ("mamba", "parts", "jvp"),
        ("qwen3_next", "parts", "loop"),  # linear attention between attention
        ("recurrent_gemma", "parts", "jvp"),  # padding passes through its states
        ("xlstm", "parts", "jvp"),  # takes no attention mask at all
        ("trocr", "parts", "jvp"),  # knows no logits_to_keep
    ],
)
def test_works_and_every_number_is_that_of_plain_torch(checks: ModuleType, kind: str, parts: str, route: str) -> None:
    found = checks.examine(kind)
    assert (found.outcome, found.why) == ("works", "")
    assert (found.parts, found.route.split(":")[0]) == (parts, route)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("xlnet", "depends on those that follow"),
        ("prophetnet", "depends on"),
        ("rwkv", "generates from other probabilities than it reads with"),
    ],
)
def test_is_refused_before_the_first_rollout(checks: ModuleType, kind: str, why: str) -> None:
    found = checks.examine(kind)
    assert found.outcome == "refused"
    assert why in found.why
