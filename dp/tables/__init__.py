"""Columns of a table as features, scaled by private statistics of the columns.

Every statistic is one Gaussian release of a vector of sums. What it sums, and by how
much one row changes it, is in :mod:`dp.tables._histogram` and
:mod:`dp.tables._moments`; that it is charged before noise is drawn, in
:mod:`dp.tables._release`. Everything else here is post-processing of what these
released, or reads one row at a time.
"""

from dp.query import Statistic
from dp.tables._encoder import Encoder, Feature, ScaledTarget
from dp.tables._fit import Declared, Fitted, fit_encoder
from dp.tables._parsing import Parsing, no_value_marks
from dp.tables._recipe import Recipe, Shape, Shares, Target
from dp.tables._release import Statistics
from dp.tables._values import Values


__all__ = (
    "Declared",
    "Encoder",
    "Feature",
    "Fitted",
    "Parsing",
    "Recipe",
    "ScaledTarget",
    "Shape",
    "Shares",
    "Statistic",
    "Statistics",
    "Target",
    "Values",
    "fit_encoder",
    "no_value_marks",
)
