"""Layers whose gradient is a sum of outer products over time: it is never formed for a row."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ippo.influence.layer_formulas.layer import Arguments, LayerFormula, first_input, in_time, like, summed_products


class LinearFormula(LayerFormula):
    """``nn.Linear``, and ``Conv1D``, which stores the same weight transposed."""

    @property
    def transposed(self) -> bool:
        return not isinstance(self.module, nn.Linear)

    def dots(self, arguments: Arguments, b: Tensor, direction: Mapping[str, Tensor]) -> Tensor:
        """sum_t b_t' V a_t, with the product taken on the narrower side."""
        a, along = first_input(arguments), self.along(direction)
        scores = b.new_zeros(len(b), dtype=torch.float32)
        if "weight" in along:
            v = (along["weight"].T if self.transposed else along["weight"]).to(b)  # [out, in]
            scores = summed_products(b @ v, a) if v.shape[1] <= v.shape[0] else summed_products(a.to(b) @ v.T, b)
        if "bias" in along:
            scores = scores + self.bias_gradients(b) @ along["bias"].float()
        return scores

    def is_short(self, arguments: Arguments, b: Tensor) -> bool:
        left, right = (factor.shape for factor in self._factors(arguments, b))
        return left[2] * right[2] <= left[1] * (left[2] + right[2])

    def gradients(self, arguments: Arguments, b: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Rows of weight 0 leave before the product, and the narrower factor takes the weights."""
        kept = weights.nonzero().flatten()
        left, right = (factor.index_select(0, kept) for factor in self._factors(arguments, b))
        scale = like(weights[kept], left)
        left, right = (left * scale, right) if left.shape[2] <= right.shape[2] else (left, right * scale)
        found = {"weight": left.flatten(0, 1).T @ right.flatten(0, 1)} if "weight" in self.names else {}
        return {**found, "bias": weights @ self.bias_gradients(b)} if "bias" in self.names else found

    def row_gradients(self, arguments: Arguments, b: Tensor) -> dict[str, Tensor]:
        left, right = self._factors(arguments, b)
        found = {"weight": left.transpose(1, 2) @ right} if "weight" in self.names else {}
        return {**found, "bias": self.bias_gradients(b)} if "bias" in self.names else found

    def squares(self, arguments: Arguments, b: Tensor) -> Tensor | None:
        """sum_ts (b_t . b_s) (a_t . a_s)"""
        if self.is_short(arguments, b):
            return None
        found = summed_products(*(factor.float() @ factor.float().mT for factor in self._factors(arguments, b)))
        found = found if "weight" in self.names else torch.zeros_like(found)
        return found + self.bias_gradients(b).square().sum(1) if "bias" in self.names else found

    def bias_gradients(self, b: Tensor) -> Tensor:
        """[n, out] sum_t b_t"""
        return in_time(b).sum(1, dtype=torch.float32)

    def sketch(self, arguments: Arguments, b: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """[n, k, m] ``rows @ weight gradient @ columns.T`` for every episode, without forming the gradient.

        Args:
            arguments, b: of the layer.
            rows: [k, the weight's first axis].
            columns: [m, its second].
        """
        left, right = self._factors(arguments, b)
        return (left.float() @ rows.T).transpose(1, 2) @ (right.float() @ columns.T)

    def _factors(self, arguments: Arguments, b: Tensor) -> tuple[Tensor, Tensor]:
        """[n, t, .] twice: the weight's gradient is the sum over t of their outer products."""
        a, b = in_time(first_input(arguments)).to(b), in_time(b)
        return (a, b) if self.transposed else (b, a)


class EmbeddingFormula(LayerFormula):
    """``nn.Embedding``; the row of its ``padding_idx`` is never trained, so never scored."""

    def dots(self, arguments: Arguments, b: Tensor, direction: Mapping[str, Tensor]) -> Tensor:
        """sum_t b_t . V[id_t]"""
        ids, b = self._trained(arguments, b)
        return summed_products(self.along(direction)["weight"][ids], b)

    def gradients(self, arguments: Arguments, b: Tensor, weights: Tensor) -> dict[str, Tensor]:
        ids, b = self._trained(arguments, b)
        table = b.new_zeros(self.parameters["weight"].shape)
        return {"weight": table.index_add_(0, ids.flatten(), (b * like(weights, b)).flatten(0, 1))}

    def row_gradients(self, arguments: Arguments, b: Tensor) -> dict[str, Tensor]:
        ids, b = self._trained(arguments, b)
        table = b.new_zeros((len(b), *self.parameters["weight"].shape))
        return {"weight": table.scatter_add_(1, ids.unsqueeze(-1).expand_as(b), b)}

    def squares(self, arguments: Arguments, b: Tensor) -> Tensor:
        """sum_ts (b_t . b_s) over places with the same id"""
        ids, b = self._trained(arguments, b)
        return summed_products(b.float() @ b.float().mT, (ids.unsqueeze(1) == ids.unsqueeze(2)).float())

    def sketch(self, arguments: Arguments, b: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """See :meth:`LinearFormula.sketch`; a token's one-hot vector picks a column of ``rows``."""
        ids, b = self._trained(arguments, b)
        return rows.T[ids].transpose(1, 2) @ (b.float() @ columns.T)

    def _trained(self, arguments: Arguments, b: Tensor) -> tuple[Tensor, Tensor]:
        """[n, t] ids and [n, t, d] output gradients, zero for the padding token."""
        ids, b = first_input(arguments).reshape(len(b), -1), in_time(b)
        padding = getattr(self.module, "padding_idx", None)
        return ids, b if padding is None else b.masked_fill((ids == padding).unsqueeze(-1), 0)
