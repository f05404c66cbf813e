from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ippo.functional import token_entropy, token_logprobs


def reference_logprobs(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    every = torch.log_softmax(logits / temperature, dim=-1)
    rows = [[every[i, t, ids[i, t]] for t in range(ids.shape[1])] for i in range(ids.shape[0])]
    return torch.stack([torch.stack(row) for row in rows])


def reference_entropy(logits: Tensor, temperature: float) -> Tensor:
    return torch.distributions.Categorical(logits=logits / temperature).entropy()


@pytest.fixture
def logits() -> Tensor:
    return 3 * torch.randn(3, 4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(7, (3, 4), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_values_and_gradients_equal_the_reference(logits: Tensor, ids: Tensor, temperature: float) -> None:
    logits.requires_grad_()
    for result, expected in [
        (token_logprobs(logits, ids, temperature), reference_logprobs(logits, ids, temperature)),
        (token_entropy(logits, temperature), reference_entropy(logits, temperature)),
    ]:
        torch.testing.assert_close(result, expected)
        upstream = torch.randn_like(expected)
        (gradient,) = torch.autograd.grad(result, logits, upstream)
        (expected_gradient,) = torch.autograd.grad(expected, logits, upstream)
        torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_forward_mode_equals_the_reference(logits: Tensor, ids: Tensor, temperature: float) -> None:
    tangent = torch.randn_like(logits)
    for function, reference in [
        (lambda x: token_logprobs(x, ids, temperature), lambda x: reference_logprobs(x, ids, temperature)),
        (lambda x: token_entropy(x, temperature), lambda x: reference_entropy(x, temperature)),
    ]:
        directional = torch.func.jvp(function, (logits,), (tangent,))[1]
        jacobian = torch.autograd.functional.jacobian(reference, logits)
        torch.testing.assert_close(directional, torch.einsum("ntijv,ijv->nt", jacobian, tangent))


def test_bfloat16_logits_are_worked_on_in_float32(logits: Tensor, ids: Tensor) -> None:
    rough = logits.bfloat16().requires_grad_()
    exact = rough.detach().double()  # the same numbers: any error from here on is the function's own

    logprobs, entropy = token_logprobs(rough, ids, 0.7), token_entropy(rough, 0.7)

    assert logprobs.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logprobs.double(), reference_logprobs(exact, ids, 0.7), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy.double(), reference_entropy(exact, 0.7), atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(logprobs.sum() + entropy.sum(), rough)
    assert gradient.dtype == torch.bfloat16


def test_ruled_out_tokens_leave_values_and_gradients_finite() -> None:
    raw = torch.tensor([[[1.0, 2.0, 5.0]]], requires_grad=True)
    logits = raw.masked_fill(torch.tensor([False, False, True]), -torch.inf)
    both = torch.cat([token_logprobs(logits, torch.tensor([[0]])), token_entropy(logits)])
    both.sum().backward()

    # two tokens are left, with probabilities p = 1 / (1 + e) and 1 - p
    p = 1 / (1 + torch.e)
    entropy = -p * torch.tensor(p).log() - (1 - p) * torch.tensor(1 - p).log()
    torch.testing.assert_close(both[:, 0], torch.stack([torch.tensor(p).log(), entropy]))
    assert raw.grad is not None
    assert raw.grad.isfinite().all()
    assert raw.grad[0, 0, 2] == 0.0


def test_large_logits_do_not_overflow() -> None:
    logits = torch.tensor([[[200.0, 199.0]]])  # exp(200) is outside of float32
    expected = torch.tensor([[-1.0]]) - torch.tensor(1 + 1 / torch.e).log()
    torch.testing.assert_close(token_logprobs(logits, torch.tensor([[1]])), expected, atol=1e-4, rtol=0)


def test_no_episodes() -> None:
    assert token_logprobs(torch.zeros(0, 4, 7), torch.zeros(0, 4, dtype=torch.long)).shape == (0, 4)
    assert token_entropy(torch.zeros(0, 4, 7)).shape == (0, 4)


def test_float32_working_copy_holds_a_few_episodes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ippo.functional.logprobs.WORKING_COPY", 2 * 4 * 512 + 1)  # room for two of eight episodes
    logits, ids = torch.zeros(8, 4, 512, dtype=torch.bfloat16), torch.zeros(8, 4, dtype=torch.long)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.dtype == torch.float32:
                largest = max(largest, result.numel())
            return result

    with Watch():
        token_logprobs(logits, ids, 0.5)
        token_entropy(logits, 0.5)
    assert largest == 2 * 4 * 512


def test_refuses_bad_arguments(logits: Tensor, ids: Tensor) -> None:
    with pytest.raises(ValueError, match=r"ids must have shape \[n=3, t=4\], got \[3, 3\]"):
        token_logprobs(logits, ids[:, 1:])
    with pytest.raises(ValueError, match=r"logits must have shape \[n, t, v\], got \[4, 7\]"):
        token_entropy(logits[0])
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        token_logprobs(logits, ids, temperature=0)
