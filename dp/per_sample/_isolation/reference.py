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
differ by follows from the number of terms and the dtype (:class:`_Tolerance`). Where
they differ by more, torch is asked how well it agrees with itself: its sums over two
halves of the units must add up to its sum over all. Only a difference well beyond that
counts. No result of this package enters that, so a wrong rule cannot excuse itself.

Shapes: ``U`` units, ``G`` groups of parameters.
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from dp.per_sample._gradients import PerSampleGradients
from dp.per_sample._isolation.powers import private_generator, slack
from dp.per_sample._isolation.trial import weighted_sums


__all__ = ("Reference", "coarsest", "ordinary_sums")

# Returns every parameter's sum for the weights of the units.
_Ordinary = Callable[[Tensor], list[Tensor]]

_POWERS: Final = 4  # Beside the signs: eight weights.
_LARGEST_SHIFT: Final = 40  # Of weights, so that no float32 leaves its range.
# Roundings of a result to the coarsest dtype of the graph, one for each use and layer,
# in the root of the sum of squares: they are as random as the units' signs.
_OF_RESULTS: Final = 32.0
# Roundings of float32 while thousands of rows are added up, relative to the sum of the
# lengths. Measured were fewer than 8, for seven models of 1 to 128 examples.
_OF_SUMS: Final = 256.0
# Roundings of one unit's norm, which is computed from rows or from squares.
_OF_NORMS: Final = 256.0
_NORMS_OF_RESULTS: Final = 4.0
_OWN_DIFFERENCES: Final = 8.0  # Of torch's sum from its sums over halves.
_TF32: Final = 2.0**-10
_BFLOAT16: Final = 2.0**-7
_FULL: Final = ("ieee", "none")


def ordinary_sums(
    losses: Tensor, parameters: Sequence[Tensor], seeds: Tensor
) -> list[Tensor]:
    """Run torch's own backward pass; the graph stays.

    Hooks on the parameters themselves, which change what lands in ``p.grad``, see
    nothing of it: no hook sees the private gradients either.

    Args:
        losses: Where it starts.
        parameters: What the gradients are of.
        seeds: What each loss is multiplied with.
    """
    with _without_hooks(parameters):
        sums = torch.autograd.grad(
            losses, [*parameters], seeds, retain_graph=True, allow_unused=True
        )
    return [
        torch.zeros_like(parameter) if total is None else total
        for parameter, total in zip(parameters, sums, strict=True)
    ]


@contextmanager
def _without_hooks(parameters: Sequence[Tensor]) -> Iterator[None]:
    hooks = [
        (registered, dict(registered))
        for parameter in parameters
        if (registered := parameter._backward_hooks)  # noqa: SLF001 -- no public list
    ]
    for registered, _ in hooks:
        registered.clear()
    try:
        yield
    finally:
        for registered, kept in hooks:
            registered.update(kept)


def coarsest(eps: float, parameters: Sequence[Tensor], device: torch.device) -> float:
    """Return the largest rounding of a result of an ordinary backward pass.

    Args:
        eps: That of the graph's dtypes.
        parameters: Whose gradients have a dtype, too.
        device: Where it runs. An accelerator, and a CPU that was permitted to, may
            multiply float32 with fewer bits.
    """
    of_parameters = [torch.finfo(parameter.dtype).eps for parameter in parameters]
    host = torch.backends.mkldnn
    is_full = all(
        one.fp32_precision in _FULL  # type: ignore[attr-defined] -- not annotated
        for one in (host.matmul, host.conv)
    )
    permitted = [] if is_full else [_BFLOAT16]
    if device.type != "cpu":
        permitted.append(_TF32)
    return max(eps, *of_parameters, *permitted)


@final
@dataclass(frozen=True, slots=True)
class _Tolerance:
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
        return (
            _OF_RESULTS * self.result_eps * rounded_G
            + _OF_SUMS * self.sum_eps * added_G
            + self.underflow * num_elements**0.5
        )

    def of_norms(self, norms_G: Tensor, num_elements: int) -> Tensor:
        """Return [G] by what a unit's norm in each group may be too small."""
        relative = _OF_NORMS * self.sum_eps + _NORMS_OF_RESULTS * self.result_eps
        floor = _NORMS_OF_RESULTS * self.result_eps * norms_G.square().sum().sqrt()
        return relative * norms_G + floor + self.underflow * num_elements**0.5


@final
class Reference:
    """What torch's own backward pass finds of one batch.

    Args:
        ordinary: Runs it, with the losses of each unit multiplied by a weight.
        parameters: What gradients are of.
        groups: The group of each, as they are clipped.
        num_units: How many units there are.
        narrowest: The dtype of the graph that underflows first.
        result_eps: See :func:`coarsest`.
        loss_scale: What gradients are divided by.
        lengths_U: About how long each unit's gradient is; None if that is unknown, or
            if the backward pass is not linear, so that no weight but 0 and 1 will do.
    """

    def __init__(
        self,
        ordinary: _Ordinary,
        parameters: Sequence[Tensor],
        groups: Sequence[int],
        *,
        num_units: int,
        device: torch.device,
        narrowest: torch.dtype,
        result_eps: float,
        loss_scale: float,
        lengths_U: Tensor | None,
    ) -> None:
        self._parameters = parameters
        self._groups = groups
        self._loss_scale = loss_scale
        self._result_eps = result_eps
        self._underflow = slack(narrowest) / loss_scale
        self._generator = private_generator(device)
        self._ones_U = torch.ones(num_units, device=device, dtype=torch.float64)
        units = self._ones_U if lengths_U is None else lengths_U.isfinite()
        self._unit: int | None = secrets.choice(
            units.nonzero().flatten().tolist() or [0]
        )
        if lengths_U is not None:
            self._weight_U = self._weights(lengths_U, narrowest)
        else:
            self._weight_U = self._halves(ordinary)
        self._ordinary = ordinary
        of_unit = [] if self._unit is None else ordinary(self._one_unit())
        self._norms_G = self._norms(of_unit) if of_unit else None
        self._sums = [(self._weight_U, ordinary(self._weight_U))]
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

    def _norms(self, of_unit: Sequence[Tensor]) -> Tensor:
        """Return [G] the norms of a gradient."""
        squares = [0.0] * (max(self._groups, default=0) + 1)
        for group, total in zip(self._groups, of_unit, strict=True):
            squares[group] += float(_length(total)) ** 2
        return torch.tensor(squares, dtype=torch.float64).sqrt() / self._loss_scale

    def wrong_sums(self, gradients: PerSampleGradients) -> list[Tensor]:
        """Return the parameters whose weighted sums are not torch's own.

        Args:
            gradients: Those of the private pass, which has left the graph as it was.
        """
        wrong: dict[int, Tensor] = {}
        for weight_U, totals in self._sums:
            sums = self._sums_of(gradients, weight_U)
            far = self._far_apart(gradients, weight_U, sums, totals)
            if far:
                off = self._own_differences(weight_U, totals)
                wrong |= {i: self._parameters[i] for i in far if far[i] > off[i]}
        return [wrong[i] for i in sorted(wrong)]

    def _sums_of(
        self, gradients: PerSampleGradients, weight_U: Tensor
    ) -> Sequence[Tensor]:
        """Return the weighted sums as the private pass finds them.

        In two parts, as the sums of a batch add up, in which others have a factor of 0.
        """
        norms_GU = gradients.squared_norms(self._groups)
        factors_GU = weight_U.expand_as(norms_GU).to(norms_GU.dtype)
        is_first_U = self._uniform() < 0.5  # noqa: PLR2004 -- a half
        return weighted_sums(
            gradients,
            self._parameters,
            self._groups,
            torch.where(is_first_U, factors_GU, 0.0),
            torch.where(is_first_U, 0.0, factors_GU),
        )

    def _far_apart(
        self,
        gradients: PerSampleGradients,
        weight_U: Tensor,
        sums: Sequence[Tensor],
        totals: Sequence[Tensor],
    ) -> dict[int, float]:
        """Return by how much sums differ, of those that rounding does not explain."""
        norms_GU = gradients.squared_norms(self._groups)
        lengths_GU = norms_GU.double().sqrt() * weight_U.abs()
        most_G = self._tolerance(norms_GU.dtype).of_sums(
            torch.where(weight_U == 0, 0.0, lengths_GU).cpu(),
            max((parameter.numel() for parameter in self._parameters), default=0),
        )
        off = [
            float(_length(one - other.to(one.dtype) / self._loss_scale))
            for one, other in zip(sums, totals, strict=True)
        ]
        return {i: n for i, n in enumerate(off) if not n <= most_G[self._groups[i]]}

    def _own_differences(
        self, weight_U: Tensor, totals: Sequence[Tensor]
    ) -> list[float]:
        """Return how far torch's sums are from its own sums over halves of the units."""
        is_first_U = self._uniform() < 0.5  # noqa: PLR2004 -- a half
        halves = [
            self._ordinary(torch.where(is_in_U, weight_U, 0.0))
            for is_in_U in (is_first_U, ~is_first_U)
        ]
        return [
            _OWN_DIFFERENCES
            * float(_length(total.double() - one.double() - other.double()))
            / self._loss_scale
            for total, one, other in zip(totals, *halves, strict=True)
        ]

    def is_norm_too_small(self, gradients: PerSampleGradients) -> bool:
        """Whether the chosen unit's norm is smaller than its gradient, in any group."""
        if self._norms_G is None:
            return False
        squared_GU = gradients.squared_norms(self._groups)
        norms_G = squared_GU[:, self._unit].double().sqrt().cpu()
        elements = sum(parameter.numel() for parameter in self._parameters)
        tolerance = self._tolerance(squared_GU.dtype)
        least_G = self._norms_G - tolerance.of_norms(self._norms_G, elements)
        return bool((norms_G < least_G).any())

    def _tolerance(self, dtype: torch.dtype) -> _Tolerance:
        eps = torch.finfo(dtype).eps
        return _Tolerance(max(self._result_eps, eps), eps, self._underflow)


def _length(tensor: Tensor) -> Tensor:
    """Return the norm of a tensor, added up in float64."""
    return torch.linalg.vector_norm(tensor, dtype=torch.float64).cpu()
