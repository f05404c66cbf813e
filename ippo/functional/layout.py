"""How a batch of episodes lies in memory: its axes and its padding.

Each axis has its letter, here and in all docstrings: ``n`` episodes, ``t`` response tokens, ``v`` vocabulary.
A response starts at column 0 and is padded on the right. Its mask, bool or 0/1, is True on response tokens,
so a row is ones and then zeros, and a row of zeros is an empty response. What lies under the padding
never counts, be it NaN: it is replaced and not multiplied away, since ``0 * NaN`` is NaN.
"""

from __future__ import annotations

from torch import Tensor


def check_axes(axes: str, **tensors: Tensor) -> None:
    """Check the shapes of tensors against axis letters; the same letter must have the same size everywhere.

    Args:
        axes: one group of letters for each tensor, separated by blanks, such as ``"n nt"``.
        tensors: the tensors, by argument name, in the order of the groups.

    Raises:
        ValueError: naming the first argument that does not fit, the shape expected and the shape found.

    Example:
        >>> import torch
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
        >>> import torch
        >>> zero_padding(torch.tensor([[0.5, float("nan")]]), torch.tensor([[1, 0]]))
        tensor([[0.5000, 0.0000]])
    """
    return values.masked_fill(~mask.bool(), 0)
