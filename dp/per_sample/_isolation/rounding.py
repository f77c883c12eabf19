"""How far two computations of one sum of gradients may lie apart by rounding.

An error of a rule is of the order of a gradient; rounding is of the order of a gradient
times the precision of a dtype. What is let pass lies between: example, 100 gradients of
length 1 in float32. Signs are random, so their sum is about 10 long; results may be off
by ``32 * 1.2e-7 * 20``, what is added up by ``256 * 1.2e-7 * 100``, together 0.0032. One
gradient that is wrong by all of its length is off by 1, or 300 times as far. In bfloat16
the first is ``32 * 0.0078 * 20 = 5``: one gradient in 100 is not seen in a sum, but if
all are wrong, they are off by 14.

Shapes: ``U`` units, ``G`` groups of parameters.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor

from dp.per_sample._graph.uses import Graph


__all__ = ("Tolerance", "coarsest", "sure_of")

# Roundings of a result to the coarsest dtype of the graph, one for each use and layer,
# in the root of the sum of squares: they are as random as the units' signs.
_OF_RESULTS: Final = 32.0
# Roundings of float32 while thousands of rows are added up, relative to the sum of the
# lengths. Measured were fewer than 8, for seven models of 1 to 128 examples.
_OF_SUMS: Final = 256.0
# Roundings of one unit's norm, which is computed from rows or from squares.
_OF_NORMS: Final = 256.0
_NORMS_OF_RESULTS: Final = 4.0
# Operations that torch adds up in float32, whatever their dtype is; and how many uses
# of a parameter it adds up after them, in the parameter's dtype.
_ADDED_IN_FLOAT32: Final = frozenset(
    {"AddmmBackward0", "BmmBackward0", "ConvolutionBackward0", "MmBackward0"}
)
_MOST_USES: Final = 64
_TF32: Final = 2.0**-10
_BFLOAT16: Final = 2.0**-7
_FULL: Final = ("ieee", "none")


def sure_of(graph: Graph, parameters: Sequence[Tensor]) -> list[bool]:
    """Return of which parameters torch adds up gradients in float32, even in 16 bits."""
    uses = Counter(id(p) for use in graph.uses for p in use.parameters)
    coarse = {
        id(p)
        for use in graph.uses
        if use.operation not in _ADDED_IN_FLOAT32
        for p in use.parameters
    }
    return [id(p) not in coarse and uses[id(p)] <= _MOST_USES for p in parameters]


def coarsest(eps: float, device: torch.device) -> float:
    """Return the largest rounding of a result of an ordinary backward pass.

    Args:
        eps: That of the dtypes of the graph and the parameters.
        device: Where it runs. An accelerator, and a CPU that was permitted to, may
            multiply float32 with fewer bits.
    """
    host: Any = torch.backends.mkldnn  # Its annotations leave these out.
    is_full = all(one.fp32_precision in _FULL for one in (host.matmul, host.conv))
    permitted = [eps] if is_full else [eps, _BFLOAT16]
    return max(permitted if device.type == "cpu" else [*permitted, _TF32])


@final
@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far two computations of one sum may lie apart by rounding.

    Attributes:
        result_eps: The relative rounding of results of the ordinary pass.
        sum_eps: That of the dtype in which sums are added up.
        underflow: By what an element may be off that underflowed.
    """

    result_eps: float
    sum_eps: float
    underflow: float

    def of_sums(self, lengths_GU: Tensor, num_elements: int) -> Tensor:
        """Return [G] how far a parameter of each group may be off.

        A group whose true gradient is zero, as that of a bias before a softmax, holds
        nothing but roundings of others: so these are let pass in every group.

        Args:
            lengths_GU: How long each unit's weighted gradient is in each group.
            num_elements: The number of elements of the largest parameter.
        """
        squared_G = lengths_GU.square().sum(1)
        rounded_G = squared_G.sqrt() + squared_G.sum().sqrt()
        added_G = lengths_GU.sum(1)
        rounded_G = _OF_RESULTS * self.result_eps * rounded_G
        added_G = _OF_SUMS * self.sum_eps * added_G
        return rounded_G + added_G + self.underflow * math.sqrt(num_elements)

    def of_norms(self, norms_G: Tensor, num_elements: int) -> Tensor:
        """Return [G] by what a unit's norm in each group may be too small."""
        relative = _OF_NORMS * self.sum_eps + _NORMS_OF_RESULTS * self.result_eps
        floor = _NORMS_OF_RESULTS * self.result_eps * norms_G.square().sum().sqrt()
        return relative * norms_G + floor + self.underflow * math.sqrt(num_elements)
