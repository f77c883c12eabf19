"""Compare norms and sums with what torch's own backward pass finds.

Rules, owners and caches of this package find the gradient of every unit. An ordinary
backward pass needs none of them: for seeds ``w`` it returns ``sum_u w_u g_u``, the sum
of the units' gradients with these weights, whatever the model is. So two things of the
private pass are compared with it:

* the weighted sum of all gradients, for weights that the operating system draws: a sign
  and a power of two each. A rule that reads another unit's activations, loses a use or
  adds one twice gives another sum. If one unit's gradient is wrong and all others are
  right, the sums differ whatever the weights are; errors of several units cancel for at
  most one in eight of the weights that one of them may get.
* the norm of one unit, which the operating system chooses: it may not be smaller than
  that of ``w = (0, ..., 1, ..., 0)``, in any group of parameters that is clipped by
  itself. A norm that is too large only clips more.

Example: three units with gradients 1, 2 and 4, and weights 1, -2 and 1 give
1 - 4 + 4 = 1. If a rule gives the third unit the gradient of the second, it finds
1 - 4 + 2 = -1, and the sums differ by 2; a norm of 2 for the third is less than 4.

Both sides are rounded, and in another order. Weights bring every gradient to a length
between 1/2 and 8, and change no rounding on the way back, so what the two sums may
differ by follows from the number of terms and the dtype (:mod:`.rounding`). Where
they differ by more, torch is asked how well it agrees with itself: for weights that are
3, 5 and 7 times as large, its sums must be 3, 5 and 7 times as large, too, but every
rounding is another. Only a difference well beyond that counts. No result of this
package enters it, so a wrong rule cannot excuse itself.

In 16 bits torch may not agree with the truth, however well it agrees with itself: some
of its kernels add thousands of rows in bfloat16, where adding 1 to 256 changes nothing.
For parameters of other uses than matrix products a difference is then reported as one
that says nothing (:attr:`Differences.unsure`), not as an error.

Shapes: ``U`` units, ``G`` groups of parameters.
"""

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from dp.per_sample._isolation.powers import private_generator, slack
from dp.per_sample._isolation.rounding import Tolerance
from dp.per_sample._isolation.trial import Coded


__all__ = ("Differences", "Reference")

# Returns every parameter's sum for the weights of the units.
_Ordinary = Callable[[Tensor], list[Tensor]]

_POWERS: Final = 4  # Beside the signs: eight weights.
_LARGEST_SHIFT: Final = 40  # Of weights, so that no float32 leaves its range.
_SCALES: Final = (3.0, 5.0, 7.0)  # Which no dtype multiplies with without rounding.
_OWN_DIFFERENCES: Final = 8.0  # Of torch's own sums, for two such scales.


@final
@dataclass(frozen=True, slots=True)
class Differences:
    """Parameters whose gradients are not as torch's own pass has them.

    Attributes:
        wrong: Those that are wrong.
        unsure: Those of which 16 bits leave torch no better knowledge.
    """

    wrong: Sequence[Tensor] = ()
    unsure: Sequence[Tensor] = ()


@final
class Reference:
    """What torch's own backward pass finds of one batch.

    Attributes:
        weight_U: The weights of the units.
        sums: The sums with these weights that it was compared with, if they were added
            up in one go.
        is_comparable: Whether torch's results are finite.

    Args:
        ordinary: Runs it, with the losses of each unit multiplied by a weight.
        parameters: What gradients are of.
        groups: The group of each, as they are clipped.
        sure: Of which of them torch's own sums can be trusted; see :func:`sure_of`.
        num_units: How many units there are.
        narrowest: The dtype of the graph that underflows first.
        result_eps: See :func:`coarsest`.
        loss_scale: What gradients are divided by.
        lengths_U: How long each unit's gradient is; None if the backward pass is not
            linear, so that no weight but 0 and 1 will do.
        in_parts: Whether sums are added up in two parts, which takes longer.
    """

    def __init__(
        self,
        ordinary: _Ordinary,
        parameters: Sequence[Tensor],
        groups: Sequence[int],
        *,
        sure: Sequence[bool],
        num_units: int,
        device: torch.device,
        narrowest: torch.dtype,
        result_eps: float,
        loss_scale: float,
        lengths_U: Tensor | None,
        in_parts: bool,
    ) -> None:
        self._parameters = parameters
        self._groups = groups
        self._sure = sure
        self._in_parts = in_parts
        self._num_elements = sum(parameter.numel() for parameter in parameters)
        self.sums: list[Tensor] | None = None
        self._loss_scale = loss_scale
        self._result_eps = result_eps
        self._underflow = slack(narrowest) / loss_scale
        self._generator = private_generator(device)
        self._is_linear = lengths_U is not None
        self._ones_U = torch.ones(num_units, device=device, dtype=torch.float64)
        # Only a unit with a finite gradient can be compared; if there is none, nothing
        # is comparable, and any unit will do.
        units = self._ones_U if lengths_U is None else lengths_U.isfinite()
        self._unit: int | None = secrets.choice(
            units.nonzero().flatten().tolist() or [0]
        )
        if lengths_U is not None:
            self.weight_U = self._weights(lengths_U, narrowest)
        else:
            self.weight_U = self._halves(ordinary)
        self._ordinary = ordinary
        of_unit = [] if self._unit is None else ordinary(self._one_unit())
        self._norms_G = (
            self._by_group([float(_length(one)) / loss_scale for one in of_unit])
            if of_unit
            else None
        )
        self._sums = [(self.weight_U, ordinary(self.weight_U))]
        if of_unit and result_eps > torch.finfo(torch.float32).eps:
            # In a sum of many units, 16 bits leave nothing of an error of one.
            self._sums.append((self._one_unit(), of_unit))
        # NaN of one unit spoils torch's sum, whatever its weight is.
        self.is_comparable: bool = all(
            bool(total.isfinite().all()) for _, sums in self._sums for total in sums
        ) and (self._norms_G is None or bool(self._norms_G.isfinite().all()))

    def _weights(self, lengths_U: Tensor, narrowest: torch.dtype) -> Tensor:
        """Return a random sign and power of two for each unit, 0 if it is not finite."""
        power_U = (self._uniform() * _POWERS).floor()
        sign_U = torch.where(self._uniform() < 0.5, -1.0, 1.0)  # noqa: PLR2004 -- a half
        is_finite_U = lengths_U.isfinite()
        if narrowest != torch.float16:  # It has no room to bring all to one length.
            # Example: a length of 12 is 0.75 * 2**4; with a weight of 2**(k - 4) it
            # becomes 0.75 * 2**k, for k = 0, 1, 2 or 3. All lengths are from 1/2 up to
            # 8 then, so that an error in the shortest gradient is not lost in the sum.
            exponent_U = torch.frexp(lengths_U.masked_fill(~is_finite_U, 0)).exponent
            power_U -= exponent_U.clamp(-_LARGEST_SHIFT, _LARGEST_SHIFT)
        return torch.where(is_finite_U, sign_U * power_U.exp2(), 0.0)

    def _halves(self, ordinary: _Ordinary) -> Tensor:
        """Return 1 for the units that count, where other weights would say nothing.

        Half of them count, if what counts nothing adds nothing. A hook that adds a
        number to gradients adds it for every unit at once: then no unit is seen alone.
        """
        if len(self._ones_U) == 1:
            return self._ones_U
        if any(bool((total != 0).any()) for total in ordinary(0 * self._ones_U)):
            self._unit = None
            return self._ones_U
        return (self._uniform() < 0.5).double()  # noqa: PLR2004 -- a half

    def _uniform(self) -> Tensor:
        """Return [U] numbers from 0 to 1, by no generator of the user's."""
        return torch.rand(
            len(self._ones_U),
            dtype=torch.float64,
            device=self._ones_U.device,
            generator=self._generator,
        )

    def _one_unit(self) -> Tensor:
        one_U = torch.zeros_like(self._ones_U)
        one_U[self._unit] = 1
        return one_U

    def _by_group(self, lengths: Sequence[float]) -> Tensor:
        """Return [G] the length over the parameters of each group."""
        # Two parameters of one group, with lengths 3 and 4: 5.
        squares = [0.0] * (max(self._groups, default=0) + 1)
        for group, length in zip(self._groups, lengths, strict=True):
            squares[group] += length**2
        return torch.tensor(squares, dtype=torch.float64).sqrt()

    def sums_that_differ(self, coded: Coded) -> Differences:
        """Return the parameters whose weighted sums are not torch's own.

        Args:
            coded: A pass that has left the graph as it was. It keeps what it was
                compared by.
        """
        differing: set[int] = set()
        for weight_U, totals in self._sums:
            sums = coded.sums(*self._parts(weight_U))
            if weight_U is self.weight_U and not self._in_parts:
                self.sums = sums
            # Torch runs four more times only where rounding does not explain a
            # difference.
            far = self._far_apart(coded, weight_U, sums, totals)
            if far:
                own = self._own_differences(weight_U)
                differing |= {i for i, length in far.items() if not length <= own[i]}
        return self._differences(sorted(differing))

    def _parts(self, weight_U: Tensor) -> list[Tensor]:
        """Return weights that add up to these.

        The sums of a batch add up in parts, too, in which others have a factor of 0.
        """
        if not self._in_parts:
            return [weight_U]
        is_first_U = self._uniform() < 0.5  # noqa: PLR2004 -- a half
        return [
            torch.where(is_in_U, weight_U, 0.0) for is_in_U in (is_first_U, ~is_first_U)
        ]

    def _differences(self, indices: Sequence[int]) -> Differences:
        return Differences(
            [self._parameters[i] for i in indices if self._sure[i]],
            [self._parameters[i] for i in indices if not self._sure[i]],
        )

    def _far_apart(
        self,
        coded: Coded,
        weight_U: Tensor,
        sums: Sequence[Tensor],
        totals: Sequence[Tensor],
    ) -> dict[int, float]:
        """Return by how much sums differ, of those that rounding does not explain."""
        # [G, U]: what each unit's term in the sum may have been rounded by.
        lengths_GU = (coded.norms() + self._lost(coded.dtype)) * weight_U.abs()
        most_G = self._tolerance(coded.dtype).of_sums(
            torch.where(weight_U == 0, 0.0, lengths_GU).cpu(),
            max((parameter.numel() for parameter in self._parameters), default=0),
        )
        off = [
            float(_length(one - other.to(one.dtype) / self._loss_scale))
            for one, other in zip(sums, totals, strict=True)
        ]
        return {i: n for i, n in enumerate(off) if not n <= most_G[self._groups[i]]}

    def _own_differences(self, weight_U: Tensor) -> list[float]:
        """Return how far torch's sums for scaled weights are from being scaled sums.

        Where a hook makes the backward pass another for scaled losses, that is unknown.
        """
        if not self._is_linear:
            unknown = self._result_eps > torch.finfo(torch.float32).eps
            return [torch.inf if unknown else 0.0] * len(self._parameters)
        totals = [total.double() for total in self._ordinary(weight_U)]
        off = [0.0] * len(totals)
        # A sum that rounds well gives 5 S for 5 times the weights. If bfloat16 made it
        # 4.9 S, torch itself is 0.02 S off, and a difference of up to 8 times that says
        # nothing.
        for scale in _SCALES:
            scaled = self._ordinary(scale * weight_U)
            off = [
                max(before, float(_length(one.double() / scale - total)))
                for before, one, total in zip(off, scaled, totals, strict=True)
            ]
        return [_OWN_DIFFERENCES * one / self._loss_scale for one in off]

    def norms_too_small(self, coded: Coded) -> Differences:
        """Return the groups in which the chosen unit's norm is less than its gradient's.

        Args:
            coded: As for :meth:`sums_that_differ`.
        """
        if self._norms_G is None:
            return Differences()
        # The one unit's norm in each group of parameters: [G] of [G, U].
        norms_G = coded.norms()[:, self._unit].cpu()
        tolerance, elements = self._tolerance(coded.dtype), self._num_elements
        most_G = tolerance.of_norms(self._norms_G, elements) + self._lost(coded.dtype)
        missing_G = self._norms_G - norms_G
        if bool((missing_G > most_G).any()):
            most_G += self._by_group(self._own_differences(self._one_unit()))
        small = {*(missing_G > most_G).nonzero().flatten().tolist()}
        indices = [i for i, group in enumerate(self._groups) if group in small]
        of_groups = self._differences(indices)
        # A norm is as sure as the least sure of the gradients that it is of.
        if of_groups.unsure:
            return Differences((), [*of_groups.wrong, *of_groups.unsure])
        return of_groups

    def _lost(self, dtype: torch.dtype) -> float:
        """Return how long a gradient may be whose norm is found to be 0."""
        # Squares of smaller elements underflow: the norm of an example that a saturated
        # softmax has learnt is 0, where its gradient is 1e-22.
        return math.sqrt(self._num_elements * torch.finfo(dtype).tiny)

    def _tolerance(self, dtype: torch.dtype) -> Tolerance:
        eps = torch.finfo(dtype).eps
        return Tolerance(max(self._result_eps, eps), eps, self._underflow)


def _length(tensor: Tensor) -> Tensor:
    """Return the norm of a tensor, added up in float64."""
    length: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return length.cpu()
