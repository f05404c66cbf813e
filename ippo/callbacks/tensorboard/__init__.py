"""What TensorBoard is told beside numbers: what a curve means, which curves to look at, and answers to read."""

from ippo.callbacks.tensorboard.described import DescribedCurves

__all__ = ["DescribedCurves"]
