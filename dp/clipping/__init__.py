"""Bound how much one example can move the gradient.

A rule turns the norms of the examples' gradients into factors; the sum of gradients
times factors then has a known L2 sensitivity. Noise is not added here
(:mod:`dp.noise`), and norms are computed elsewhere (:mod:`dp.per_sample`).
"""

from dp.clipping._quantile import QuantileClipping
from dp.clipping._rules import (
    AutomaticClipping,
    Clipping,
    FlatClipping,
    PerGroupClipping,
    PerLayerClipping,
)
from dp.clipping._scaled import ScaledClipping
from dp.clipping._sparse import SparseClipping


__all__ = (
    "AutomaticClipping",
    "Clipping",
    "FlatClipping",
    "PerGroupClipping",
    "PerLayerClipping",
    "QuantileClipping",
    "ScaledClipping",
    "SparseClipping",
)

for _public in (
    AutomaticClipping,
    Clipping,
    FlatClipping,
    PerGroupClipping,
    PerLayerClipping,
    QuantileClipping,
    ScaledClipping,
    SparseClipping,
):
    _public.__module__ = __name__  # What pickles and tracebacks show.
