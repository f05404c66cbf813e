"""Which formula each layer of a module has."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from ippo.influence.layer_formulas.layer import LayerFormula
from ippo.influence.layer_formulas.products import EmbeddingFormula, LinearFormula
from ippo.influence.layer_formulas.rows import NormFormula
from ippo.influence.parameters import spread, trainable
from ippo.influence.sharding import at_rest

Kinds = Mapping[str, type[LayerFormula]]
"""Of layers without a formula of their own, by name, what a trial found them to be."""

UNTRIED: Kinds = {}

_FORMULAS: tuple[tuple[type[nn.Module], type[LayerFormula]], ...] = (
    (nn.Linear, LinearFormula),
    (nn.Embedding, EmbeddingFormula),
    (nn.LayerNorm, NormFormula),
    (nn.RMSNorm, NormFormula),
)


def find_layer_formulas(module: nn.Module, kinds: Kinds = UNTRIED) -> list[LayerFormula]:
    """Every module that owns a trainable parameter.

    Args:
        module: the scored one.
        kinds: see :data:`Kinds`.
    """
    if spread(module):
        at_rest(module)
    canonical = {id(parameter): name for name, parameter in trainable(module).items()}
    formulas = [formula for name, part in module.named_modules() if (formula := _formula(name, part, canonical))]
    return [kinds[one.name](one.name, one.module, one.names) if one.name in kinds else one for one in formulas]


def why_not(formula: LayerFormula, shape: torch.Size, n: int, axes: int) -> str | None:
    """Why the rows of a layer's output are not the ``n`` episodes; None if they are.

    Args:
        formula: the layer.
        shape: of its output.
        n: episodes in the batch.
        axes: the most axes that any layer's output has.
    """
    if isinstance(formula.module, ParametrizationList):
        return "it computes another layer's weight"
    if len(shape) < 2 or shape[0] != n:
        return f"its output has shape {tuple(shape)}, which does not start with the batch's {n} episodes"
    if isinstance(formula, EmbeddingFormula) and len(shape) == 2 < axes:
        return f"its output of shape {tuple(shape)} has a row a position or a row an episode, and which one is not told"
    return None


def _formula(name: str, module: nn.Module, canonical: Mapping[int, str]) -> LayerFormula | None:
    own = {local: parameter for local, parameter in module._parameters.items() if parameter is not None}
    names = {local: canonical[id(parameter)] for local, parameter in own.items() if id(parameter) in canonical}
    if not names:
        return None
    library = sys.modules.get("transformers.pytorch_utils")  # without it there is no Conv1D to be met
    conv1d: list[tuple[Any, type[LayerFormula]]] = [(library.Conv1D, LinearFormula)] if library else []
    for plain, kind in [*_FORMULAS, *conv1d]:
        # A subclass with a forward of its own (a scaled embedding, a wrapped layer) is not that formula any more.
        if type(module).forward is plain.forward and "forward" not in vars(module):
            return kind(name, module, names)
    return LayerFormula(name, module, names)
