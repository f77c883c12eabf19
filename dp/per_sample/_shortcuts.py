"""Which uses of a known graph are served together with others.

A step of a small model is hundreds of small calls, and the same of them in every step:
whose they may share is found once for the sizes of a graph.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from dp.per_sample._graph.uses import Graph
from dp.per_sample._isolation.analysis import Plan
from dp.per_sample._layer_batching import LayerGroup, find_identical_layers
from dp.per_sample._parts.row_groups import RowGroups
from dp.per_sample._repeated_layers import RepeatedLayer, find_repeated_layers
from dp.per_sample._row_layers import RowLayer, find_row_layers


__all__ = ("Shortcuts", "find_shortcuts")


@final
@dataclass(frozen=True, slots=True)
class Shortcuts:
    """The uses of a known graph that need not be served one by one.

    Attributes:
        layers: Those that may be served as one.
        rows: Linear layers that meet one row of each example; none of the above.
        repeated: Linear layers that meet a row of an example at each of many steps.
        groups: The rows of uses by unit, by the plan's owners, once they were found.
    """

    layers: Sequence[LayerGroup] = ()
    rows: Sequence[RowLayer] = ()
    repeated: Sequence[RepeatedLayer] = ()
    groups: dict[Hashable, RowGroups] = field(default_factory=dict)


def find_shortcuts(
    graph: Graph,
    plan: Plan,
    parameters: Sequence[Tensor],
    *,
    num_samples: int,
) -> Shortcuts:
    """Return the uses that may be served together, in graphs like this one."""
    layouts = plan.layouts
    layers = find_identical_layers(graph, layouts, parameters, num_samples=num_samples)
    rows = find_row_layers(
        graph,
        layouts,
        parameters,
        num_samples=num_samples,
        batched={position for group in layers for position in group.members},
    )
    repeated = find_repeated_layers(
        graph, layouts, plan.owners, parameters, num_samples=num_samples
    )
    return Shortcuts(layers, rows, repeated)
