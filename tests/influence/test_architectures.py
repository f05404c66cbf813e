"""Every backend on every architecture against one plain backward an episode."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

import pytest
import torch
from architectures import (
    ARCHITECTURES,
    VOCABULARY,
    Rollout,
    build,
    losses,
    random_direction,
    roll_out,
    slow_scores,
    with_lora,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ippo.errors import UsageError
from ippo.functional import policy_loss, token_logprobs
from ippo.influence import ExactScorer, ValidationDirection
from ippo.influence.exact import Backend
from ippo.rollout.sequences import Sequences
from ippo.sft import demonstration_loss

BACKENDS: tuple[Any, ...] = get_args(Backend)
REFUSED = {("ghost", "opt")}  # OPT runs its MLP over [n * t, d]: rows are no episodes there
KINKED = {("fd", "opt")}  # finite differences step over the kinks of its ReLU
PAIRS = [(backend, name) for name in ARCHITECTURES for backend in BACKENDS if (backend, name) not in REFUSED | KINKED]
EXACT_PAIRS = [(backend, name) for backend, name in PAIRS if backend != "fd"]

LAYOUTS = {  # tokens of each prompt, and of each response
    "both sides padded": ([2, 5, 1, 4], [5, 1, 3, 4]),
    "right side padded": ([4, 4, 4], [2, 5, 3]),
    "one token": ([3, 1, 5, 2, 4, 2, 3, 1], [1] * 8),
    "as many rows as columns": ([3] * 7, [4] * 7),
    "many": ([2, 5, 1, 4, 3, 2] * 4, [5, 1, 3, 4] * 6),
}


@dataclass(frozen=True)
class Case:
    """A model that no test may change, episodes and a direction, and what each parameter should add to the scores."""

    policy: nn.Module
    rollout: Rollout
    gold: Sequences
    direction: dict[str, Tensor]
    parts: dict[str, Tensor]

    @property
    def expected(self) -> Tensor:
        return together(self.parts)


def together(parts: dict[str, Tensor]) -> Tensor:
    """[n] scores from what each parameter adds."""
    return torch.stack(list(parts.values())).sum(0).float()


@cache
def make_case(
    name: str,
    tied: bool = True,
    attention: str | None = None,
    lora: bool = False,
    layout: str = "both sides padded",
    dtype: torch.dtype = torch.float32,
) -> Case:
    model = build(name, tied, attention, spread=0.15 if dtype == torch.float32 else 0.03)
    policy: nn.Module = with_lora(model) if lora else model
    policy.to(dtype=dtype)
    rollout, gold = roll_out(policy, *LAYOUTS[layout]), roll_out(policy, [3, 2], [4, 5])
    direction = random_direction(policy)
    return Case(policy, rollout, gold, direction, slow_scores(policy, rollout, direction))


def score(backend: Any, case: Case, **changes: Any) -> Tensor:
    """Scores of a case, or with another policy, losses, batches or direction."""
    asked = {"module": case.policy, "losses": losses, "batches": [case.rollout], "direction": case.direction, **changes}
    return ExactScorer(backend).score(**asked)


def assert_same(scores: Tensor, expected: Tensor, backend: str) -> None:
    assert scores.shape == expected.shape
    assert (expected != 0).any()
    assert (scores - expected).abs().max() <= (2e-3 if backend == "fd" else 1e-5) * expected.abs().max()


class TestScoresAreDotProducts:
    @pytest.mark.parametrize("attention", [None, "eager"], ids=["default attention", "eager"])
    @pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
    @pytest.mark.parametrize(("backend", "name"), PAIRS)
    def test_of_all_parameters(self, name: str, tied: bool, attention: str | None, backend: str) -> None:
        case = make_case(name, tied, attention)
        assert_same(score(backend, case), case.expected, backend)

    @pytest.mark.parametrize(("tied", "attention"), [(True, None), (False, "eager")], ids=["tied", "untied eager"])
    @pytest.mark.parametrize(("backend", "name"), PAIRS)
    def test_of_adapters(self, name: str, tied: bool, attention: str | None, backend: str) -> None:
        case = make_case(name, tied, attention, lora=True)
        assert all("lora_" in name for name in case.direction)
        assert_same(score(backend, case), case.expected, backend)

    @pytest.mark.parametrize("layout", ["right side padded", "one token"])
    @pytest.mark.parametrize(("backend", "name"), PAIRS)
    def test_whatever_is_padded(self, name: str, layout: str, backend: str) -> None:
        case = make_case(name, layout=layout)
        assert_same(score(backend, case), case.expected, backend)

    @pytest.mark.parametrize(("backend", "name"), EXACT_PAIRS)
    def test_with_the_direction_of_gold_examples(self, name: str, backend: str) -> None:
        case = make_case(name)
        direction = ValidationDirection([case.gold], demonstration_loss)
        expected = together(slow_scores(case.policy, case.rollout, direction.compute(case.policy)))
        assert_same(score(backend, case, direction=direction), expected, backend)

    @pytest.mark.parametrize(("backend", "name"), EXACT_PAIRS)
    def test_in_bfloat16_but_for_its_rounding(self, name: str, backend: str) -> None:
        """Bounded over many episodes: how far the worst one is off differs from one processor to another."""
        case = make_case(name, layout="many", dtype=torch.bfloat16)
        error = (score(backend, case) - case.expected).square().mean().sqrt()
        assert error <= 2e-2 * case.expected.abs().max()


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_layer_left_out_would_be_seen(name: str, lora: bool) -> None:
    """Every parameter adds more to the scores than the tolerance forgives, or nothing at all."""
    case = make_case(name, lora=lora)
    shares = {part: float(dots.abs().max() / case.expected.abs().max()) for part, dots in case.parts.items()}
    too_small = {part for part, share in shares.items() if share < 1e-3}
    # The same number added to all scores of a query changes no softmax: without rotation, biases of keys do nothing.
    assert too_small == {part for part in shares if name == "opt" and part.endswith("k_proj.bias")}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models_are_built_as_asked(name: str, tied: bool) -> None:
    policy: Any = make_case(name, tied).policy
    assert (policy.get_input_embeddings().weight is policy.get_output_embeddings().weight) == tied
    fused = type(policy)._supports_sdpa  # gemma2 refuses it, from some version of transformers on
    assert fused or name == "gemma2"
    assert policy.config._attn_implementation == ("sdpa" if fused else "eager")
    eager: Any = make_case(name, tied, "eager").policy
    assert eager.config._attn_implementation == "eager"


@pytest.mark.parametrize(("backend", "name"), sorted(REFUSED))
def test_what_cannot_be_told_apart_is_refused_by_name(backend: str, name: str) -> None:
    with pytest.raises(UsageError, match=r"cannot cover 'model\.decoder\.layers\.0\."):
        score(backend, make_case(name))


@pytest.mark.parametrize(("backend", "name"), PAIRS)
def test_no_advantage_no_score(name: str, backend: str) -> None:
    case = make_case(name)
    advantages = case.rollout.advantages.clone()
    advantages[1] = 0
    scores = score(backend, case, batches=[dataclasses.replace(case.rollout, advantages=advantages)])
    others = torch.tensor([0, 2, 3])
    assert_same(scores[others], case.expected[others], backend)
    assert scores[1].abs() <= (1e-3 * case.expected.abs().max() if backend == "fd" else 0)


@pytest.mark.parametrize(("backend", "name"), PAIRS)
def test_neighbours_and_padding_do_not_matter(name: str, backend: str) -> None:
    case = make_case(name)
    whole = score(backend, case)
    assert_same(score(backend, case, batches=case.rollout.chunks(1)), whole, backend)
    order = torch.tensor([3, 0, 3, 1])
    assert_same(score(backend, case, batches=[case.rollout.rows(order)]), whole[order], backend)
    assert_same(score(backend, case, batches=[widened(case.rollout, 3)]), whole, backend)


def widened(rollout: Rollout, columns: int) -> Rollout:
    """The same episodes with more padding on both sides; what lies under it is anything."""

    def widen(field: dataclasses.Field[Any]) -> Any:
        value = getattr(rollout, field.name)
        if value is None or field.metadata["axis"] == "episode":
            return value
        shape = (len(rollout), columns)
        if value.dtype == torch.bool:
            more = torch.zeros(shape, dtype=torch.bool)
        else:
            more = torch.randn(shape) if value.is_floating_point() else torch.randint(VOCABULARY, shape)
        return torch.cat([more, value] if field.metadata["axis"] == "prompt" else [value, more], 1)

    return Rollout(**{field.name: widen(field) for field in dataclasses.fields(rollout)})


class TestPositions:
    """A model that numbers positions itself has one row of them for the whole batch."""

    @staticmethod
    def losses(policy: nn.Module, rollout: Rollout) -> Tensor:
        logits = policy(input_ids=rollout.input_ids, attention_mask=rollout.attention_mask, use_cache=False).logits
        logprobs = token_logprobs(logits[:, rollout.prompt_ids.shape[1] - 1 : -1], rollout.response_ids)
        return policy_loss(logprobs, rollout.old_logprobs, rollout.advantages, rollout.response_mask)

    @pytest.mark.parametrize("size", [1, 64])
    @pytest.mark.parametrize("layout", ["right side padded", "as many rows as columns"])  # its numbers are right there
    @pytest.mark.parametrize(("backend", "name"), [pair for pair in PAIRS if pair[1] in ("gpt2", "opt")])
    def test_never_given_never_wrong(self, backend: str, name: str, layout: str, size: int) -> None:
        case = make_case(name, layout=layout)
        try:
            scores = score(backend, case, losses=self.losses, batches=case.rollout.chunks(size))
        except UsageError:
            assert backend == "ghost"  # the only one that may refuse
        else:
            assert_same(scores, case.expected, backend)


class TestModelsInTraining:
    """Dropout, gradient checkpointing and its hooks are off while scoring, and on again afterwards."""

    @pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
    @pytest.mark.parametrize("setting", ["dropout", "checkpointing", "checkpointing and input gradients"])
    @pytest.mark.parametrize(("backend", "name"), PAIRS)
    def test_are_scored_as_ever_and_left_as_they_were(self, name: str, setting: str, lora: bool, backend: str) -> None:
        case = make_case(name, lora=lora)
        policy: Any = copy.deepcopy(case.policy).train()
        if setting != "dropout":
            policy.gradient_checkpointing_enable()
        if setting == "checkpointing and input gradients":
            policy.enable_input_require_grads()
        policy.get_output_embeddings().eval()  # a part with a mode of its own
        before, embedded = state(policy), embeddings_need_gradients(policy)
        scores = score(backend, case, module=policy)
        assert_same(scores, case.expected, backend)
        assert state(policy) == before
        assert embeddings_need_gradients(policy) == embedded
        assert all(
            torch.equal(now, was) for now, was in zip(policy.parameters(), case.policy.parameters(), strict=True)
        )

    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_would_drop_out_otherwise(self, name: str) -> None:
        case = make_case(name)
        policy = copy.deepcopy(case.policy).train()
        assert not torch.equal(losses(policy, case.rollout), losses(policy, case.rollout))


def state(policy: nn.Module) -> list[Any]:
    """What scoring may not leave changed, besides the weights: modes, flags, hooks, gradients."""
    parts = [
        (
            name,
            part.training,
            getattr(part, "gradient_checkpointing", None),
            *(len(getattr(part, f"_{kind}")) for kind in ("forward_hooks", "forward_pre_hooks", "backward_hooks")),
        )
        for name, part in policy.named_modules()
    ]
    return parts + [(name, p.requires_grad, p.grad is None) for name, p in policy.named_parameters()]


def embeddings_need_gradients(policy: Any) -> bool:
    """Whether the hook that gradient checkpointing of frozen models needs is there."""
    with torch.enable_grad():
        return policy.get_input_embeddings()(torch.tensor([[4]])).requires_grad


LENGTHS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(lengths=LENGTHS, blank=st.integers(0, 2), seed=st.integers(0, 99))
def test_any_shape_and_mask(name: str, lengths: list[tuple[int, int]], blank: int, seed: int) -> None:
    case = make_case(name)
    torch.manual_seed(seed)
    prompts, responses = zip(*lengths, strict=True)
    drawn = roll_out(case.policy, prompts, responses, blank)
    # The case's own episodes set the scale of the tolerance: the drawn ones may all be clipped, or cancel.
    expected = torch.cat([together(slow_scores(case.policy, drawn, case.direction)), case.expected])
    for backend in BACKENDS:
        assert_same(score(backend, case, batches=[drawn, case.rollout]), expected, backend)
