"""What a layer's own parameters do to a gradient: the formulas that every hook-based scorer is made of.

A layer here is a module that owns trainable parameters. Its inputs ``a`` and the gradient ``b`` of its output are all
that is needed to know what it adds to an episode's gradient. Linear layers and embeddings have formulas of their own,
which never form a gradient per episode (:mod:`.products`); that of a norm is so short that it is formed
(:mod:`.rows`); any other layer (value heads, convolutions) is differentiated by torch, alone, with its inputs held
fixed (:mod:`.layer`). Rows of ``a`` and ``b`` are episodes: both start with axis n.
"""

from ippo.influence.layer_formulas.find import UNTRIED, Kinds, find_layer_formulas, why_not
from ippo.influence.layer_formulas.layer import Arguments, LayerFormula
from ippo.influence.layer_formulas.products import EmbeddingFormula, LinearFormula
from ippo.influence.layer_formulas.rows import NormFormula, ScaleFormula, row_dots, weighted_sum

__all__ = [
    "UNTRIED",
    "Arguments",
    "EmbeddingFormula",
    "Kinds",
    "LayerFormula",
    "LinearFormula",
    "NormFormula",
    "ScaleFormula",
    "find_layer_formulas",
    "row_dots",
    "weighted_sum",
    "why_not",
]
