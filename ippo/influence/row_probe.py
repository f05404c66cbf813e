"""Are the rows that a layer's hooks see the episodes? A second backward tells, for every row and layer at once."""

from __future__ import annotations

import torch
from torch import Tensor

PAIRS = 16  # of random vectors


class RowProbe:
    """Multiplies each loss by a factor of its own: a row that belongs to one episode alone comes back times its factor.

    A row that another loss reads, too, or that belongs to another episode, does not, whatever the layers between. The
    factors are powers of two of either sign, which every sum and product passes on without rounding, in half precision
    as well: rows that are apart come back to the last bit. Up to 62 episodes (16 in float16) have distinct factors; of
    more some share one by chance, another one at each probe.

    Args:
        values: [n] losses.
    """

    def __init__(self, values: Tensor) -> None:
        self._generator = torch.Generator().manual_seed(int(torch.randint(2**31, (), generator=_SEEDS)))
        powers = 8 if values.dtype == torch.float16 else 31
        numbers = torch.randperm(len(values), generator=self._generator) % (2 * powers)
        factors = torch.ldexp(1.0 - 2.0 * (numbers % 2), numbers // 2 - powers // 2)
        self.factors = factors.to(values)
        self._probes: dict[torch.Size, tuple[Tensor, Tensor]] = {}

    def sketch(self, gradient: Tensor) -> Tensor:
        """[n, k] numbers u' G v of each row of [n, ..., d], with k pairs of random u and v.

        One pair alone misses a difference that happens to be nearly at right angles to it; sixteen of them do not.
        """
        u, v = self._vectors(gradient)
        return ((gradient.reshape(len(gradient), -1, gradient.shape[-1]) @ v).float() * u).sum(1)

    def agrees(self, gradient: Tensor, sketch: Tensor) -> bool:
        """Whether the gradient of the losses times their factors is, row by row, that of the losses times it.

        Args:
            gradient: of the second backward.
            sketch: of the first one's.
        """
        found = self.sketch(gradient) / self.factors.float()[:, None]
        tolerance = (
            1e-2 if gradient.dtype in (torch.bfloat16, torch.float16) else 1e-5
        )  # for kernels that are not fixed
        return bool(((found - sketch).norm(dim=1) <= tolerance * sketch.norm(dim=1).max()).all())

    def _vectors(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """[m, k] and [d, k]; the same each time for gradients of one shape."""
        shape = gradient.shape
        if shape not in self._probes:
            u = torch.randn(max(1, shape[1:-1].numel()), PAIRS, generator=self._generator)
            v = torch.randn(shape[-1], PAIRS, generator=self._generator)
            self._probes[shape] = u.to(gradient.device), v.to(gradient)
        return self._probes[shape]


_SEEDS = torch.Generator().manual_seed(0)  # the training's own generators are left alone
