"""How a batch of episodes lies in memory: its axes and its padding.

Each axis has its letter, here and in all docstrings: ``n`` episodes, ``t`` response tokens, ``v`` vocabulary.
A response starts at column 0 and is padded on the right. Its mask, bool or 0/1, is True on response tokens,
so a row is ones and then zeros, and a row of zeros is an empty response. Where the order of the tokens counts
another mask is refused; sums and means over tokens are right for any mask. What lies under the padding
never counts, be it NaN: it is replaced and not multiplied away, since ``0 * NaN`` is NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_axes(axes: str, **tensors: Tensor) -> None:
    """Check the shapes of tensors against axis letters; the same letter must have the same size everywhere.

    Args:
        axes: one group of letters for each tensor, separated by blanks, such as ``"n nt"``.
        tensors: the tensors, by argument name, in the order of the groups.

    Raises:
        ValueError: naming the first argument that does not fit, the shape expected and the shape found.

    Example:
        >>> check_axes("n nt", scores=torch.zeros(2), mask=torch.ones(2, 3))
        >>> check_axes("n nt", scores=torch.zeros(2), mask=torch.ones(4, 3))
        Traceback (most recent call last):
        ...
        ValueError: mask must have shape [n=2, t], got [4, 3]
    """
    sizes: dict[str, int] = {}
    for letters, (name, tensor) in zip(axes.split(), tensors.items(), strict=True):
        found = dict(zip(letters, tensor.shape, strict=False))
        if len(letters) != tensor.ndim or any(sizes.get(axis, size) != size for axis, size in found.items()):
            expected = ", ".join(f"{axis}={sizes[axis]}" if axis in sizes else axis for axis in letters)
            raise ValueError(f"{name} must have shape [{expected}], got {list(tensor.shape)}")
        sizes |= found


def zero_padding(values: Tensor, mask: Tensor) -> Tensor:
    """Replace whatever lies under the padding by zero; gradients and tangents there become zero too.

    Args:
        values: [n, t].
        mask: [n, t], True on response tokens.

    Returns:
        [n, t], in the dtype of ``values``.

    Example:
        >>> zero_padding(torch.tensor([[0.5, float("nan")]]), torch.tensor([[1, 0]]))
        tensor([[0.5000, 0.0000]])
    """
    return values.masked_fill(~mask.bool(), 0)


def response_lengths(mask: Tensor) -> Tensor:
    """The number of tokens of each response, whose padding must lie on its right.

    On a GPU the check waits for the device: call it once a rollout, and not once a micro-batch.

    Args:
        mask: [n, t], True on response tokens.

    Returns:
        [n] integers.

    Raises:
        ValueError: naming the first row that has padding before a token.

    Example:
        >>> response_lengths(torch.tensor([[1, 1, 0], [0, 0, 0]]))
        tensor([2, 0])
        >>> response_lengths(torch.tensor([[1, 1, 0], [1, 0, 1]]))
        Traceback (most recent call last):
        ...
        ValueError: mask must be ones and then zeros, but row 1 has a token after padding: pad responses on the right
    """
    lengths = mask.bool().sum(dim=1)
    straight = mask.bool() == (torch.arange(mask.shape[1], device=mask.device) < lengths.unsqueeze(1))
    if not bool(straight.all()):
        row = int((~straight).any(dim=1).nonzero()[0])
        raise ValueError(
            f"mask must be ones and then zeros, but row {row} has a token after padding: pad responses on the right"
        )
    return lengths


def at_least_float32(values: Tensor) -> Tensor:
    """Integers and half precision as float32; float32 and float64 as they are.

    Sums and exponentials lose in half precision what they are about: in bfloat16 seven times 0.1 is not 0.7.

    Example:
        >>> at_least_float32(torch.tensor([1, 2])), at_least_float32(torch.zeros(1, dtype=torch.float64)).dtype
        (tensor([1., 2.]), torch.float64)
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))
